//! A name server that says what a test wants.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, ResponseCode};
pub use hickory_resolver::proto::rr::RecordType;
use hickory_resolver::proto::rr::{RData, Record};
use tokio::net::UdpSocket;

/// What a name server says of one name.
#[derive(Debug, Clone)]
pub enum Says {
    /// With the seconds that they count.
    Addresses(Vec<IpAddr>, u32),
    NoSuchName,
    Failure,
    /// No answer at all.
    Nothing,
}

/// A name server on a loopback socket, until dropped.
pub struct NameServer {
    pub address: SocketAddr,
    zone: Arc<Mutex<HashMap<&'static str, Says>>>,
    asked: Arc<Mutex<Vec<(String, RecordType)>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl NameServer {
    /// Knows no name yet.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone: Arc<Mutex<HashMap<&str, Says>>> = Arc::default();
        let asked: Arc<Mutex<Vec<_>>> = Arc::default();
        let task = {
            let (zone, asked) = (zone.clone(), asked.clone());
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                loop {
                    let (n, from) = socket.recv_from(&mut buffer).await.unwrap();
                    let question = Message::from_vec(&buffer[..n]).unwrap();
                    let query = question.queries[0].clone();
                    let name = query.name().to_string();
                    asked
                        .lock()
                        .unwrap()
                        .push((name.clone(), query.query_type()));
                    let says = zone.lock().unwrap().get(&*name).cloned();
                    if let Some(answer) = respond(&question, says.unwrap_or(Says::NoSuchName)) {
                        socket.send_to(&answer, from).await.unwrap();
                    }
                }
            })
        };
        Self {
            address,
            zone,
            asked,
            task,
        }
    }

    /// What it says of a name, which ends with a dot, from now on.
    pub fn say(&self, name: &'static str, says: Says) {
        self.zone.lock().unwrap().insert(name, says);
    }

    /// How often it was asked for these records of a name.
    pub fn times_asked(&self, name: &str, kind: RecordType) -> usize {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|(n, k)| n == name && *k == kind)
            .count()
    }
}

fn respond(question: &Message, says: Says) -> Option<Vec<u8>> {
    let query = &question.queries[0];
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.add_query(query.clone());
    match says {
        Says::Addresses(addresses, ttl) => {
            let fitting = addresses.into_iter().filter(|ip| {
                let kind = if ip.is_ipv4() {
                    RecordType::A
                } else {
                    RecordType::AAAA
                };
                kind == query.query_type()
            });
            let records =
                fitting.map(|ip| Record::from_rdata(query.name().clone(), ttl, RData::from(ip)));
            answer.add_answers(records);
        }
        Says::NoSuchName => answer.metadata.response_code = ResponseCode::NXDomain,
        Says::Failure => answer.metadata.response_code = ResponseCode::ServFail,
        Says::Nothing => return None,
    }
    Some(answer.to_vec().unwrap())
}
