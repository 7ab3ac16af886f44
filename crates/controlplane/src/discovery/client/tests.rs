use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[tokio::test(start_paused = true)]
async fn the_task_of_a_peer_that_breaks_begins_anew_until_it_ends_well() {
    let begun = Arc::new(AtomicUsize::new(0));
    let count = begun.clone();
    let task = move || {
        let run = count.fetch_add(1, Ordering::SeqCst);
        async move { assert_eq!(run, 2, "the first two break") }
    };
    unbroken("red-mesh".parse().unwrap(), task).await;
    assert_eq!(begun.load(Ordering::SeqCst), 3);
}
