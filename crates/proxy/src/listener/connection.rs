//! One client connection: handshake, then whatever its filter chain says.

use std::sync::Arc;

use meshfed_pki::{HandshakeRefusal, SpiffeId, TrustStore};
use meshfed_proxy_config::{DownstreamTls, Network};
use rustls::ProtocolVersion;
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use super::{Admission, Shared, Subject, tcp};
use crate::cut::{Control, Verdict};
use crate::end::End;
use crate::engine::{Chain, Tables};
use crate::http::{self, HttpConnection};
use crate::io::{Prefetch, Stream, prepare};
use crate::record::Record;
use crate::trust::{Proof, Role};

pub(super) async fn run(
    socket: TcpStream,
    shared: Arc<Shared>,
    tables: Arc<Tables>,
    mut record: Record,
    admission: Admission,
) {
    prepare(&socket);
    let control = Control::new();
    let chains = shared.chains.load_full();
    let opened = if chains.uses_tls() {
        let limit = chains.listener.handshake_timeout;
        let handshake = Box::pin(handshake(socket, &shared, &tables, &mut record));
        match tokio::time::timeout(limit, handshake).await {
            Ok(opened) => opened,
            Err(_) => Err(End::HandshakeTimeout),
        }
    } else {
        match chains.choose(None) {
            Some(chain) => Ok((
                Stream::Plain(socket),
                Subject {
                    sni: None,
                    chain: chain.clone(),
                    proof: None,
                    trust: None,
                },
            )),
            None => Err(End::NoChain),
        }
    };
    drop(chains);
    let (stream, subject) = match opened {
        Ok(opened) => opened,
        Err(end) => return record.finish(end),
    };
    record.seed.chain = Some(subject.chain.name.clone());
    record.seed.peer = subject.proof.as_ref().map(|p| p.id.clone());

    // In this order: a change of the configuration either finds the connection in the set, or is
    // seen here.
    let _entered = shared.enter(&control, &subject);
    match shared.judge(&subject, &tables) {
        Verdict::Keep => {}
        Verdict::Cut(cut) => return record.finish(cut.into()),
        Verdict::Drain(_) => return record.finish(End::NoChain),
    }
    match &subject.chain.clone().config.network {
        Network::Tcp(config) => {
            tcp::serve(config, stream, &subject, &tables, record, &control).await;
            drop(admission);
        }
        Network::Http(_) => {
            let seed = record.seed.clone();
            let connection = HttpConnection::new(tables, shared, subject, seed, control, admission);
            http::serve(connection, stream, record).await;
        }
    }
}

/// Reads the ClientHello, chooses the chain, and has the client prove who it is.
async fn handshake(
    socket: TcpStream,
    shared: &Shared,
    tables: &Tables,
    record: &mut Record,
) -> Result<(Stream, Subject), End> {
    let start = LazyConfigAcceptor::new(Acceptor::default(), Prefetch::new(socket))
        .await
        .map_err(|e| Refused::from(&e).end)?;
    let sni: Option<Arc<str>> = start.client_hello().server_name().map(Into::into);
    record.seed.sni = sni.clone();
    let chain = shared
        .chains
        .load()
        .choose(sni.as_deref())
        .cloned()
        .ok_or(End::NoChain)?;
    record.seed.chain = Some(chain.name.clone());
    let tls = chain.config.tls.as_ref().ok_or(End::NoChain)?;
    let Some(trust) = tables.trust.get(&tls.trust) else {
        return Err(End::NotConfigured);
    };
    let stream = authenticate(start, &chain, tls, &trust.store, tables)
        .await
        .map_err(|refused| {
            record.seed.claimed = refused.claimed;
            refused.end
        })?;
    let session = stream.get_ref().1;
    record.seed.tls = session.protocol_version().and_then(version);
    let proof =
        Proof::new(session.peer_certificates(), Role::Client).map_err(End::ClientCertificate)?;
    let subject = Subject {
        sni,
        chain,
        proof: Some(Arc::new(proof)),
        trust: Some(trust.store.clone()),
    };
    Ok((Stream::Server(Box::new(stream)), subject))
}

async fn authenticate(
    start: StartHandshake<Prefetch>,
    chain: &Chain,
    tls: &DownstreamTls,
    trust: &Arc<TrustStore>,
    tables: &Tables,
) -> Result<tokio_rustls::server::TlsStream<Prefetch>, Refused> {
    let made = chain
        .server_tls(tls, trust, &tables.identity)
        .map_err(|error| {
            tracing::error!(chain = &*chain.name, %error, "TLS settings cannot be used");
            Refused {
                end: End::NotConfigured,
                claimed: None,
            }
        })?;
    let config = made.configs.choose(&start.client_hello());
    start
        .into_stream(config)
        .await
        .map_err(|e| Refused::from(&e))
}

/// A handshake that failed.
struct Refused {
    end: End,
    claimed: Option<SpiffeId>,
}

impl From<&std::io::Error> for Refused {
    fn from(error: &std::io::Error) -> Self {
        let refusal = HandshakeRefusal::from(error);
        Self {
            end: match &refusal {
                HandshakeRefusal::Closed => End::ClientLeft,
                other => End::ClientCertificate(other.label()),
            },
            claimed: refusal.claimed_id().cloned(),
        }
    }
}

fn version(version: ProtocolVersion) -> Option<&'static str> {
    match version {
        ProtocolVersion::TLSv1_2 => Some("1.2"),
        ProtocolVersion::TLSv1_3 => Some("1.3"),
        _ => None,
    }
}
