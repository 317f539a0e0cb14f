//! The body of an answer: all of it at once, or in pieces as they are made.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tokio::sync::mpsc;

/// What is sent.
pub(crate) enum Body {
    /// All of it.
    Whole(Option<Bytes>),
    /// Piece by piece. An error in place of one breaks it off.
    Pieces(Pieces),
}

/// Pieces that are made while the first are sent.
pub(crate) struct Pieces(mpsc::Receiver<io::Result<Bytes>>);

/// A body in pieces, of which `ahead` may wait to be sent.
pub(crate) fn pieces(ahead: usize) -> (mpsc::Sender<io::Result<Bytes>>, Pieces) {
    let (sender, receiver) = mpsc::channel(ahead);
    (sender, Pieces(receiver))
}

impl Body {
    pub(crate) fn whole(text: impl Into<Bytes>) -> Self {
        Self::Whole(Some(text.into()))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Whole(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Pieces(pieces) => {
                pieces.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}
