//! Bodies of answers.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use tokio::sync::watch;

use crate::watch::Watch;

type Piece = Pin<Box<dyn Future<Output = (Box<Watch>, Option<Bytes>)> + Send>>;

/// A whole answer, or the pieces of a watch.
pub struct ResponseBody(Kind);

enum Kind {
    Whole(Option<Bytes>),
    Watch {
        piece: Piece,
        ending: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    },
    End,
}

impl ResponseBody {
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self(Kind::Whole(Some(bytes.into())))
    }

    pub fn watch(watch: Watch) -> Self {
        Self(Kind::Watch {
            piece: next(Box::new(watch)),
            ending: None,
        })
    }

    /// Ends a watch when its connection is to end.
    pub fn end_with(&mut self, mut ends: watch::Receiver<bool>) {
        if let Kind::Watch { ending, .. } = &mut self.0 {
            *ending = Some(Box::pin(async move {
                // A sender that is gone ends it, too.
                let _ = ends.wait_for(|ending| *ending).await;
            }));
        }
    }
}

fn next(mut watch: Box<Watch>) -> Piece {
    Box::pin(async move {
        let piece = watch.next().await;
        (watch, piece)
    })
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.0 {
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::End => Poll::Ready(None),
            Kind::Watch { piece, ending } => {
                let ended = ending.as_mut();
                if ended.is_some_and(|ending| ending.as_mut().poll(context).is_ready()) {
                    self.0 = Kind::End;
                    return Poll::Ready(None);
                }
                let (watch, bytes) = ready!(piece.as_mut().poll(context));
                if bytes.is_some() {
                    *piece = next(watch);
                } else {
                    self.0 = Kind::End;
                }
                Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Kind::Whole(None) | Kind::End)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Kind::End => SizeHint::with_exact(0),
            Kind::Watch { .. } => SizeHint::default(),
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Whole(_) => "ResponseBody::Whole",
            Kind::Watch { .. } => "ResponseBody::Watch",
            Kind::End => "ResponseBody::End",
        })
    }
}
