//! Control planes that ask for our exports in ways that should hurt.

use tokio::io::AsyncReadExt as _;

use super::exporter::{Scene, read_until};
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_stops_reading_is_cut_off_and_another_peer_hears_everything() {
    let mut scene = Scene::new().await;
    let _stuck = scene.ask("evil", "/v1/watch/evil", "").await.unwrap();
    let mut reading = scene.ask("good", "/v1/watch/good", "").await.unwrap();
    read_until(&mut reading, "\r\n\r\n").await;
    eventually("both watch", || {
        match (scene.connected("evil"), scene.connected("good")) {
            (evil, good) if evil == [true] && good == [true] => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // What the kernel and TLS take on the way is no more than some MiB.
    for generation in 1..200 {
        scene.export(generation, 200_000);
        read_until(&mut reading, &format!("{generation}\"]")).await;
    }
    eventually("the stuck watch is cut off", || {
        match scene.connected("evil")[..] {
            [false] => Ok(()),
            ref other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(scene.connected("good"), [true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watches_lists_and_headers_of_one_peer_do_not_touch_another() {
    let mut scene = Scene::new().await;
    let mut reading = scene.ask("good", "/v1/watch/good", "").await.unwrap();
    let mut open = Vec::new();
    let close = "connection: close\r\n";
    for _ in 0..80 {
        open.push(scene.ask("evil", "/v1/watch/evil", close).await.unwrap());
        open.push(scene.ask("evil", "/v1/services/evil", "").await.unwrap());
    }
    let flood = "x-flood: 0123456789abcdef\r\n".repeat(20_000);
    let flooded = scene.answer("evil", "/v1/services/evil", &flood).await;
    assert!(!flooded.starts_with("HTTP/1.1 200"), "{flooded:.100}");
    let report = format!(
        "meshfed-discovery: 1\r\nmeshfed-report: {}\r\n",
        "[".repeat(9000)
    );
    let answer = scene.answer("evil", "/v1/services/evil", &report).await;
    assert!(
        answer.starts_with("HTTP/1.1 200"),
        "a report that is no report is left out"
    );
    // Nobody reads the list of another.
    let other = scene.answer("evil", "/v1/services/good", "").await;
    assert!(other.starts_with("HTTP/1.1 403"), "{other:.100}");
    scene.export(7, 10);
    read_until(&mut reading, "0000000007").await;
    // The oldest watches were ended to make room.
    let mut ended = Vec::new();
    let first = tokio::time::timeout(PATIENCE, open[0].read_to_end(&mut ended)).await;
    assert!(first.is_ok());
    assert!(
        String::from_utf8_lossy(&ended).ends_with("0\r\n\r\n"),
        "a clean end"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_announce_the_extension_gets_what_the_reference_sends() {
    let scene = Scene::new().await;
    let list = meshfed_federation::discovery::message::ServiceList::new(vec![Service {
        accounts: vec!["0".into()],
        ..service("x")
    }]);
    let body = String::from_utf8(list.encode()).unwrap();
    let plain = scene.answer("good", "/v1/services/good", "").await;
    let (head, got) = plain.split_once("\r\n\r\n").unwrap();
    assert_eq!(got, body);
    assert!(
        !head.contains("meshfed") && !head.contains("etag"),
        "{head}"
    );
    let mut watch = scene.ask("good", "/v1/watch/good", "").await.unwrap();
    let mut head = vec![0; 4096];
    let n = watch.read(&mut head).await.unwrap();
    let head = String::from_utf8_lossy(&head[..n]).to_lowercase();
    assert!(head.contains("content-type: application/json"), "{head}");
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    assert!(!head.contains("meshfed"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "no initial event: {head}");

    let announce = "meshfed-discovery: 1\r\nmeshfed-report: {\"imported\":1}\r\n";
    let extended = scene.answer("good", "/v1/services/good", announce).await;
    let (head, got) = extended.split_once("\r\n\r\n").unwrap();
    let health = r#""meshfedHealth":{"readyEndpoints":0,"capacity":0,"draining":false}"#;
    assert!(got.contains(health), "{got}");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: "));
    let known = format!("{announce}if-none-match: {}\r\n", tag.unwrap());
    let again = scene.answer("good", "/v1/services/good", &known).await;
    assert!(again.starts_with("HTTP/1.1 304"), "{again}");
    eventually("the report is shown", || {
        let seen = scene.bench.seen.observed();
        let report = seen.peers["good"].watchers[0].report.clone();
        report
            .filter(|r| r.imported == 1)
            .map(drop)
            .ok_or_else(|| "no report".to_owned())
    })
    .await;
}
