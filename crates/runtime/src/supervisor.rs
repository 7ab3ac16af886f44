//! Background tasks that must not end unnoticed.

use std::collections::HashMap;
use std::error::Error;

use tokio::task::{Id, JoinError, JoinSet};

use crate::drain::DrainWatch;

/// What a background task may fail with.
pub type TaskError = Box<dyn Error + Send + Sync>;

/// A background task that ended although it should have run on.
#[derive(Debug, thiserror::Error)]
pub enum TaskEnded {
    #[error("the background task {name:?} ended before the shutdown")]
    Early { name: String },
    #[error("the background task {name:?} failed")]
    Failed {
        name: String,
        #[source]
        cause: TaskError,
    },
    #[error("the background task {name:?} panicked: {message}")]
    Panicked { name: String, message: String },
}

/// Runs the background tasks of a process. One that ends before the drain begins, or that fails
/// or panics at any time, ends [`run`](Self::run) and with it the process.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<Result<(), TaskError>>,
    names: HashMap<Id, String>,
}

impl Supervisor {
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task now. The name is shown to people.
    pub fn spawn<E>(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: Into<TaskError>,
    {
        let handle = self
            .tasks
            .spawn(async move { task.await.map_err(Into::into) });
        self.names.insert(handle.id(), name.into());
    }

    /// Waits until a task ends that should not, or, after the drain began, until all have ended.
    /// Tasks that still run are aborted when this returns an error.
    pub async fn run(mut self, drain: DrainWatch) -> Result<(), TaskEnded> {
        loop {
            let ended = tokio::select! {
                biased;
                () = drain.forced() => return Ok(()),
                ended = self.tasks.join_next_with_id() => ended,
            };
            match ended {
                None if drain.is_signaled() => return Ok(()),
                // Nothing to supervise yet is no failure.
                None => drain.signaled().await,
                Some(ended) => self.judge(ended, drain.is_signaled())?,
            }
        }
    }

    fn judge(
        &mut self,
        ended: Result<(Id, Result<(), TaskError>), JoinError>,
        draining: bool,
    ) -> Result<(), TaskEnded> {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(e) => e.id(),
        };
        let name = self.names.remove(&id).unwrap_or_default();
        match ended {
            Ok((_, Ok(()))) if draining => Ok(()),
            Ok((_, Ok(()))) => Err(TaskEnded::Early { name }),
            Ok((_, Err(cause))) => Err(TaskEnded::Failed { name, cause }),
            Err(e) => Err(TaskEnded::Panicked {
                name,
                message: panic_message(e),
            }),
        }
    }
}

fn panic_message(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(payload) => payload
            .downcast_ref::<&str>()
            .map(|s| s.to_string())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_string()),
        Err(_) => "it was aborted".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::Drain;

    type Nothing = Result<(), std::io::Error>;

    #[tokio::test]
    async fn a_task_that_ends_early_is_named() {
        let (_drain, watch) = Drain::new();
        let mut supervisor = Supervisor::new();
        supervisor.spawn("watcher", async { Nothing::Ok(()) });
        supervisor.spawn("other", std::future::pending::<Nothing>());
        let ended = supervisor.run(watch).await.unwrap_err();
        assert!(matches!(ended, TaskEnded::Early { name } if name == "watcher"));
    }

    #[tokio::test]
    async fn a_task_that_fails_or_panics_is_named_with_its_reason() {
        let (_drain, watch) = Drain::new();
        let mut supervisor = Supervisor::new();
        supervisor.spawn("failing", async { Err(std::io::Error::other("disk full")) });
        let ended = supervisor.run(watch.clone()).await.unwrap_err();
        assert!(
            matches!(ended, TaskEnded::Failed { name, cause } if name == "failing" && cause.to_string() == "disk full")
        );

        let mut supervisor = Supervisor::new();
        supervisor.spawn("panicking", async {
            if true {
                panic!("impossible");
            }
            Nothing::Ok(())
        });
        let ended = supervisor.run(watch).await.unwrap_err();
        assert!(matches!(ended, TaskEnded::Panicked { message, .. } if message == "impossible"));
    }

    #[tokio::test]
    async fn after_the_signal_tasks_may_end() {
        let (drain, watch) = Drain::new();
        let mut supervisor = Supervisor::new();
        let worker = watch.clone();
        supervisor.spawn("worker", async move {
            worker.signaled().await;
            Nothing::Ok(())
        });
        drain.signal();
        supervisor.run(watch).await.unwrap();
    }
}
