//! Cutting a watch's body into events.

use super::decode::decode_event;
use super::{DecodeError, Limits, WatchEvent};

/// Deepest nesting of an event. The protocol needs four levels; the rest is room for unknown keys.
const MAX_DEPTH: usize = 32;

/// Bytes of a watch's body in, events out. Chunks need not end where events end.
#[derive(Debug)]
pub struct EventDecoder {
    limits: Limits,
    /// The bytes of the event that has begun.
    event: Vec<u8>,
    depth: usize,
    in_string: bool,
    after_backslash: bool,
}

impl EventDecoder {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            event: Vec::new(),
            depth: 0,
            in_string: false,
            after_backslash: false,
        }
    }

    /// From the next byte on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Appends to `events` those that end in `chunk`.
    ///
    /// # Errors
    /// The body cannot be read from here on; the watch has to be given up. Events before the fault
    /// are in `events`.
    pub fn push(&mut self, chunk: &[u8], events: &mut Vec<WatchEvent>) -> Result<(), DecodeError> {
        for &byte in chunk {
            if self.depth == 0 {
                match byte {
                    b'{' => self.depth = 1,
                    b' ' | b'\t' | b'\r' | b'\n' => continue,
                    other => return Err(DecodeError::NotAnObject(other)),
                }
            } else {
                self.step(byte)?;
            }
            if self.event.len() >= self.limits.event_bytes {
                let limit = self.limits.event_bytes;
                return Err(DecodeError::EventTooLong { limit });
            }
            self.event.push(byte);
            if self.depth == 0 {
                events.push(decode_event(&self.event, &self.limits)?);
                self.event.clear();
            }
        }
        Ok(())
    }

    /// Follows the nesting; whether the object is valid is found out when it is read.
    fn step(&mut self, byte: u8) -> Result<(), DecodeError> {
        if self.in_string {
            match byte {
                _ if self.after_backslash => self.after_backslash = false,
                b'\\' => self.after_backslash = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(());
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' if self.depth == MAX_DEPTH => {
                return Err(DecodeError::EventTooDeep { limit: MAX_DEPTH });
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
        Ok(())
    }
}
