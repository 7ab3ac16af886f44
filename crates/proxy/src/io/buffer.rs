//! Copy buffers, kept per thread.
//!
//! A connection holds a buffer only while bytes are in it, so that idle connections cost none, and
//! busy ones allocate none.

use std::cell::RefCell;

use crate::limits::{COPY_BUFFER, KEPT_BUFFERS};

thread_local! {
    static KEPT: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes on their way, if any: `data[start..end]` of a buffer of this thread or another.
#[derive(Default)]
pub(super) struct Lent {
    data: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Lent {
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.data {
            Some(data) => &data[self.start..self.end],
            None => &[],
        }
    }

    /// The whole buffer, for reading into. What was in it is lost.
    pub(super) fn space(&mut self) -> &mut [u8] {
        (self.start, self.end) = (0, 0);
        self.data.get_or_insert_with(|| {
            KEPT.with(|kept| kept.borrow_mut().pop())
                .unwrap_or_else(|| vec![0; COPY_BUFFER].into_boxed_slice())
        })
    }

    /// Says that the first `n` bytes of [`space`](Self::space) were filled.
    pub(super) fn filled(&mut self, n: usize) {
        (self.start, self.end) = (0, n);
        if n == 0 {
            self.give_back();
        }
    }

    /// Forgets the first `n` bytes.
    pub(super) fn consume(&mut self, n: usize) {
        self.start = self.end.min(self.start + n);
        if self.is_empty() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        (self.start, self.end) = (0, 0);
        let Some(data) = self.data.take() else { return };
        // The thread may be going down, then the buffer simply goes with it.
        let _ = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < KEPT_BUFFERS {
                kept.push(data);
            }
        });
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emptied_buffer_goes_back_and_is_lent_again() {
        let mut lent = Lent::default();
        lent.space()[..3].copy_from_slice(b"abc");
        lent.filled(3);
        lent.consume(1);
        assert_eq!(lent.bytes(), b"bc");
        lent.consume(2);
        assert!(lent.is_empty() && lent.data.is_none());
        assert_eq!(KEPT.with(|k| k.borrow().len()), 1);
        let _again = lent.space();
        assert_eq!(KEPT.with(|k| k.borrow().len()), 0);
    }
}
