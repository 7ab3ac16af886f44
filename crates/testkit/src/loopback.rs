//! Addresses of a test's own.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// The port that marks a network as taken. Outside the range from which systems pick ports
/// themselves, and none that is used otherwise.
const LOCK_PORT: u16 = 61_599;
/// Networks to choose from: 127.64.4.0/24 to 127.127.253.0/24; the demo takes those below. Meshes choose theirs above, people
/// below.
const SECOND: u32 = 64;
const THIRD: u32 = 250;

/// A /24 of 127.0.0.0/8 that nobody else on this machine uses while this is held, so that fixed
/// ports can be listened on.
#[derive(Debug)]
pub struct LoopbackNet {
    second: u8,
    third: u8,
    _lock: TcpListener,
}

impl LoopbackNet {
    /// Takes a network that is free, for this process and against all others that ask here.
    ///
    /// # Panics
    ///
    /// If none is free.
    pub fn lock() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let count = 64 * THIRD;
        // Processes start at different places, so that they seldom meet.
        let first = process::id().wrapping_mul(97);
        for _ in 0..count {
            let n = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count;
            let second = (SECOND + n / THIRD) as u8;
            let third = (4 + n % THIRD) as u8;
            let lock = (Ipv4Addr::new(127, second, third, 254), LOCK_PORT);
            if let Ok(lock) = TcpListener::bind(lock) {
                return Self {
                    second,
                    third,
                    _lock: lock,
                };
            }
        }
        panic!("no free network in 127.64.0.0/10: each address refused port {LOCK_PORT}");
    }

    /// The address that ends with `last`.
    pub fn address(&self, last: u8) -> IpAddr {
        Ipv4Addr::new(127, self.second, self.third, last).into()
    }

    /// `127.x.y.0/24`.
    pub fn cidr(&self) -> String {
        format!("{}/24", self.address(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_networks_that_are_held_are_never_the_same() {
        let a = LoopbackNet::lock();
        let b = LoopbackNet::lock();
        assert_ne!(a.cidr(), b.cidr());
        assert!(TcpListener::bind((a.address(1), 15443)).is_ok());
    }
}
