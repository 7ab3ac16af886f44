//! A listener that accepts connections.

use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Tables;
use crate::cut::{Cut, Verdict};
use crate::listener::{BindError, Shared, accept};

/// A listener in force. Dropping it stops accepting; its connections go on.
pub(super) struct Running {
    /// As configured: port 0 stays 0.
    pub(super) address: SocketAddr,
    pub(super) bound: SocketAddr,
    pub(super) shared: Arc<Shared>,
    socket: Arc<TcpListener>,
    stop: CancellationToken,
}

impl Running {
    /// Begins to accept.
    pub(super) fn start(
        address: SocketAddr,
        socket: TcpListener,
        shared: Arc<Shared>,
        tables: Arc<Tables>,
    ) -> Result<Self, BindError> {
        let bound = socket
            .local_addr()
            .map_err(|cause| BindError::new(address, cause))?;
        let stop = CancellationToken::new();
        let socket = Arc::new(socket);
        tracing::info!(listener = &*shared.reporter.listener, address = %bound, "listening");
        tokio::spawn(accept(socket.clone(), shared.clone(), tables, stop.clone()));
        Ok(Self {
            address,
            bound,
            shared,
            socket,
            stop,
        })
    }

    /// Stops accepting; connections may end by themselves for as long as their chains say.
    pub(super) fn drain(self) {
        let shared = self.shared.clone();
        drop(self);
        let chains = shared.chains.load_full();
        let mut longest = Duration::ZERO;
        for chain in chains.all() {
            let period = chain.config.drain;
            longest = longest.max(period);
            chain.members.sweep(|_| Verdict::Drain(period));
        }
        // For those that are still in their handshake.
        shared.connections.retire(longest, Cut::Drained);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        // The task that accepts may hold the socket a moment longer; the address is free now. If
        // this fails, it is free a moment later.
        let _ = SockRef::from(&*self.socket).shutdown(Shutdown::Both);
    }
}
