//! The /24 of loopback that a mesh owns on one machine, and who gets which address of it.
//!
//! | last byte | use |
//! | --- | --- |
//! | 1 | the control plane: API 6443, gRPC 15012, discovery 8188 |
//! | 2 | `--node-address` unless given: node ports |
//! | 10 to 99 | the pool of LoadBalancer services |
//! | 100 to 199 | the service range of ClusterIP and NodePort services |
//! | 200 to 250 | workloads that were given no address |

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const CONTROL_PLANE: u8 = 1;
const NODE: u8 = 2;
const LOAD_BALANCER_POOL: RangeInclusive<u8> = 10..=99;
const SERVICE_RANGE: RangeInclusive<u8> = 100..=199;

/// A /24 inside 127.0.0.0/8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    second: u8,
    third: u8,
}

/// Why a text is not a subnet that a mesh may own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a /24 of 127.0.0.0/8; write it like 127.64.1.0/24")]
pub struct SubnetError(String);

impl Subnet {
    /// `127.<second>.<third>.0/24`.
    pub const fn new(second: u8, third: u8) -> Self {
        Self { second, third }
    }

    /// The n-th candidate for a mesh of this name: the same name starts at the same place, so that
    /// a mesh usually finds its addresses again. Never 127.0.0.0/24, where everybody is.
    pub fn candidate(mesh: &str, n: u32) -> Self {
        // FNV-1a; any stable spread will do.
        let hash = mesh.bytes().fold(0x811c_9dc5_u32, |h, b| {
            (h ^ u32::from(b)).wrapping_mul(0x0100_0193)
        });
        // The upper half keeps clear of what people and other programs pick by hand.
        let slot = (hash.wrapping_add(n)) % (128 * 254);
        Self {
            second: 128 + (slot / 254) as u8,
            third: 1 + (slot % 254) as u8,
        }
    }

    pub const fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.second, self.third, last)
    }

    pub const fn control_plane(&self) -> Ipv4Addr {
        self.address(CONTROL_PLANE)
    }

    pub const fn node(&self) -> Ipv4Addr {
        self.address(NODE)
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let [a, b, c, _] = address.octets();
        (a, b, c) == (127, self.second, self.third)
    }

    /// The lowest address of the LoadBalancer pool that is not taken.
    pub fn free_load_balancer(&self, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        self.free(LOAD_BALANCER_POOL, taken)
    }

    /// The lowest address of the service range that is not taken.
    pub fn free_cluster_ip(&self, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        self.free(SERVICE_RANGE, taken)
    }

    fn free(&self, range: RangeInclusive<u8>, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        range
            .map(|last| self.address(last))
            .find(|address| !taken.contains(address))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/24", self.address(0))
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(s: &str) -> Result<Self, SubnetError> {
        let refused = || SubnetError(s.chars().take(64).collect());
        let base: Ipv4Addr = s
            .strip_suffix("/24")
            .and_then(|base| base.parse().ok())
            .ok_or_else(refused)?;
        match base.octets() {
            [127, second, third, 0] => Ok(Self { second, third }),
            _ => Err(refused()),
        }
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;
    fn try_from(s: String) -> Result<Self, SubnetError> {
        s.parse()
    }
}

impl From<Subnet> for String {
    fn from(s: Subnet) -> String {
        s.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_is_written_and_read_alike() {
        let subnet: Subnet = "127.64.1.0/24".parse().unwrap();
        assert_eq!(subnet.to_string(), "127.64.1.0/24");
        assert_eq!(subnet.control_plane().to_string(), "127.64.1.1");
        for bad in [
            "127.64.1.0",
            "10.0.0.0/24",
            "127.64.1.5/24",
            "",
            "127.64.1.0/16",
        ] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn candidates_start_at_the_name_and_differ() {
        assert_eq!(
            Subnet::candidate("red-mesh", 0),
            Subnet::candidate("red-mesh", 0)
        );
        assert_ne!(
            Subnet::candidate("red-mesh", 0),
            Subnet::candidate("red-mesh", 1)
        );
        assert_ne!(
            Subnet::candidate("red-mesh", 0),
            Subnet::candidate("green-mesh", 0)
        );
    }

    #[test]
    fn a_taken_address_is_passed_over_and_a_full_pool_gives_none() {
        let subnet = Subnet::new(64, 1);
        let mut taken = BTreeSet::from([subnet.address(10)]);
        assert_eq!(subnet.free_load_balancer(&taken), Some(subnet.address(11)));
        taken.extend((0..=255).map(|last| subnet.address(last)));
        assert_eq!(subnet.free_load_balancer(&taken), None);
    }
}
