use std::{
    sync::mpsc,
    task::{Context, Waker},
    time::Duration,
};

use http::{Method, Request, header};
use http_body_util::Full;
use serde_json::json;

use super::answer;
use crate::{ApiServer, Options, WriteReport, auth::Caller};

const LONG: Duration = Duration::from_secs(20);

fn server(dir: &std::path::Path) -> ApiServer {
    ApiServer::open(Options::new(dir, Vec::new())).unwrap()
}

fn create(name: &str) -> Request<Full<bytes::Bytes>> {
    let body = json!({"metadata": {"name": name}}).to_string();
    Request::builder()
        .method(Method::POST)
        .uri("/api/v1/namespaces/default/configmaps")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(body))
        .unwrap()
}

fn anna() -> Caller {
    Caller::Admin {
        name: "anna".to_owned(),
    }
}

fn listen(server: &ApiServer) -> mpsc::Receiver<(WriteReport, u64)> {
    let (told, reports) = mpsc::channel();
    let listener = server.clone();
    assert!(server.report_writes(move |report| {
        let seen = listener.revision();
        told.send((report, seen)).unwrap();
    }));
    reports
}

#[tokio::test]
async fn a_write_is_told_before_anybody_can_see_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    let reports = listen(&server);
    let response = answer(&server.api, Ok(anna()), create("a")).await;
    assert_eq!(response.status(), 201);
    let (report, seen) = reports.try_recv().unwrap();
    assert_eq!((report.user.as_str(), report.verb), ("anna", "create"));
    assert!(seen < report.revision);
    assert_eq!(server.revision(), report.revision);
}

/// So nobody hides from the audit log by hanging up.
#[tokio::test]
async fn a_write_whose_sender_has_hung_up_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    let reports = listen(&server);
    {
        let mut asked = Box::pin(answer(&server.api, Ok(anna()), create("a")));
        let mut context = Context::from_waker(Waker::noop());
        // It is queued at once; whether it is answered at once does not matter.
        let _ = asked.as_mut().poll(&mut context);
    }
    let told = tokio::task::spawn_blocking(move || reports.recv_timeout(LONG));
    let (report, _) = told.await.unwrap().unwrap();
    assert_eq!(
        (report.name.as_str(), report.kind.as_str()),
        ("a", "ConfigMap")
    );
}
