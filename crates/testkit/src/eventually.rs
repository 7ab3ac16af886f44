//! Waiting for a condition.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks again and again until the answer is `Ok`, and gives that.
///
/// # Panics
///
/// With the last `Err` when `patience` ends.
pub async fn eventually<T, E: Debug>(
    patience: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        let last = match probe().await {
            Ok(value) => return value,
            Err(e) => e,
        };
        if Instant::now() >= deadline {
            panic!("not within {patience:?}: {last:?}");
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_condition_that_comes_true_is_met() {
        let mut n = 0;
        let met = eventually(Duration::from_secs(10), async || {
            n += 1;
            if n == 3 { Ok(n) } else { Err(n) }
        });
        assert_eq!(met.await, 3);
    }

    #[tokio::test(flavor = "current_thread")]
    #[should_panic(expected = "still dark")]
    async fn patience_ends_with_the_last_reason() {
        eventually(Duration::ZERO, async || Err::<(), _>("still dark")).await;
    }
}
