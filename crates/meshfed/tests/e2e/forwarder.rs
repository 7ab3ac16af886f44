//! A stretch of the way between two meshes that a test can cut, with word of it or without.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The ports of a mesh towards its peers.
const PORTS: [u16; 2] = [15443, 8188];

/// Takes connections in the place of an ingress gateway and carries them there. Dropped, it breaks them.
pub struct Forwarder {
    silent: watch::Sender<bool>,
    accepted: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Forwarder {
    pub async fn start(at: IpAddr, to: IpAddr) -> Self {
        let (silent, heard) = watch::channel(false);
        let accepted = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for port in PORTS {
            let listener = TcpListener::bind((at, port)).await.unwrap();
            let (heard, accepted) = (heard.clone(), accepted.clone());
            tasks.spawn(async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    accepted.fetch_add(1, Ordering::SeqCst);
                    connections.spawn(carry(stream, (to, port), heard.clone()));
                }
            });
        }
        Self {
            silent,
            accepted,
            _tasks: tasks,
        }
    }

    /// How many connections it was given so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Carries nothing more, and tells nobody: no connection is ended or refused. `false`: it goes on
    /// where it stopped.
    pub fn be_silent(&self, silent: bool) {
        self.silent.send_replace(silent);
    }
}

async fn carry(mut from: TcpStream, to: (IpAddr, u16), mut silent: watch::Receiver<bool>) {
    let copy = async {
        if let Ok(mut to) = TcpStream::connect(to).await {
            // Whoever breaks a connection sees that itself.
            let _broken = copy_bidirectional(&mut from, &mut to).await;
        }
    };
    let mut copy = std::pin::pin!(copy);
    loop {
        let carries = !*silent.borrow_and_update();
        tokio::select! {
            () = &mut copy, if carries => return,
            changed = silent.changed() => if changed.is_err() { return },
        }
    }
}
