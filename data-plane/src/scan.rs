//! Reads the stated confidence out of the bytes of passing answers, without decoding a message.
//!
//! The input is a gRPC response body (length-prefixed messages, in pieces cut anywhere) of `ConfidenceResult`s.
//! The state is a few words, whatever arrives.

use parallax_runtime::confidence::Confidence;

/// `ConfidenceResult.confidence`
const FIELD: u64 = 2;
/// Bytes before each message: a flag and the length (gRPC over HTTP/2).
const PREFIX: u8 = 5;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

/// Where in the body the next byte stands.
#[derive(Clone, Copy, PartialEq)]
enum At {
    Prefix,
    Key,
    Varint,
    Length,
    Skip(u32),
    Fixed {
        bytes: u8,
        wanted: bool,
    },
    /// In a message that cannot be read: compressed, or not the contract.
    Opaque,
}

/// An incremental reader of one response body.
pub(crate) struct Scanner {
    at: At,
    /// Bytes left of the message.
    left: u32,
    compressed: bool,
    /// A number in the making, and how many bytes of it have come.
    number: u64,
    seen: u8,
    stated: f64,
    last: Option<Confidence>,
}

impl Scanner {
    pub(crate) fn new() -> Self {
        Self { at: At::Prefix, left: 0, compressed: false, number: 0, seen: 0, stated: 0.0, last: None }
    }

    /// What the last whole message stated: `None` before one, for NaN, and for one that could not be read. A
    /// message without the field states 0, as the field has no other default.
    pub(crate) fn last(&self) -> Option<Confidence> {
        self.last
    }

    /// Takes the next bytes.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while let Some(&first) = bytes.first() {
            if self.at == At::Prefix {
                self.prefix(first);
                bytes = &bytes[1..];
            } else {
                let rest = bytes.len().min(self.left as usize);
                let used = self.field(&bytes[..rest]);
                self.left -= u32::try_from(used).expect("at most what is left");
                bytes = &bytes[used..];
            }
            if self.left == 0 && self.at != At::Prefix {
                let whole = self.at == At::Key && self.seen == 0;
                self.last = if whole { Confidence::stated(self.stated) } else { None };
                self.go(At::Prefix);
            }
        }
    }

    fn go(&mut self, at: At) {
        self.at = at;
        self.number = 0;
        self.seen = 0;
    }

    fn prefix(&mut self, byte: u8) {
        if self.seen == 0 {
            self.compressed = byte != 0;
        } else {
            self.number = self.number << 8 | u64::from(byte);
        }
        self.seen += 1;
        if self.seen == PREFIX {
            self.left = u32::try_from(self.number).expect("four bytes");
            self.stated = 0.0;
            self.go(if self.compressed { At::Opaque } else { At::Key });
        }
    }

    /// Takes at least one byte of the message; `bytes` is not empty and ends where the message does at the
    /// latest.
    fn field(&mut self, bytes: &[u8]) -> usize {
        match self.at {
            At::Opaque | At::Prefix => bytes.len(),
            At::Skip(n) => {
                let used = (n as usize).min(bytes.len());
                let rest = n - u32::try_from(used).expect("at most n");
                if rest == 0 {
                    self.go(At::Key)
                } else {
                    self.at = At::Skip(rest)
                }
                used
            }
            At::Fixed { bytes: wide, wanted } => {
                self.number |= u64::from(bytes[0]) << (8 * self.seen);
                self.seen += 1;
                if self.seen == wide {
                    if wanted {
                        self.stated = f64::from_bits(self.number);
                    }
                    self.go(At::Key);
                }
                1
            }
            At::Key | At::Length | At::Varint => {
                self.varint(bytes[0]);
                1
            }
        }
    }

    fn varint(&mut self, byte: u8) {
        if self.seen == 10 {
            return self.go(At::Opaque);
        }
        self.number |= u64::from(byte & 0x7f).checked_shl(7 * u32::from(self.seen)).unwrap_or(0);
        self.seen += 1;
        if byte & 0x80 != 0 {
            return;
        }
        let number = self.number;
        let next = match self.at {
            At::Key => match (number >> 3, number & 7) {
                (0, _) => At::Opaque,
                (FIELD, FIXED64) => At::Fixed { bytes: 8, wanted: true },
                (FIELD, _) => At::Opaque,
                (_, VARINT) => At::Varint,
                (_, FIXED64) => At::Fixed { bytes: 8, wanted: false },
                (_, LENGTH_DELIMITED) => At::Length,
                (_, FIXED32) => At::Fixed { bytes: 4, wanted: false },
                _ => At::Opaque,
            },
            At::Length => match u32::try_from(number) {
                Ok(0) => At::Key,
                // This byte is not yet taken off what is left.
                Ok(n) if n < self.left => At::Skip(n),
                _ => At::Opaque,
            },
            _ => At::Key,
        };
        self.go(next);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use parallax_proto::confidence::ConfidenceResult;
    use prost::Message;

    use super::*;

    fn result(confidence: f64) -> ConfidenceResult {
        ConfidenceResult {
            value_json: "{\"language\":\"de\"}".repeat(20),
            confidence,
            agent_id: "a".into(),
            timestamp: Some(prost_types::Timestamp { seconds: 1_767_225_600, nanos: 7 }),
            uncertainties: vec!["short".into(), String::new()],
            reasoning: "r".repeat(300),
            metadata: HashMap::from([("k".into(), "v".into())]),
        }
    }

    fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
        let mut frame = vec![flag];
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(message);
        frame
    }

    fn scan(body: &[u8]) -> Option<f64> {
        let mut scanner = Scanner::new();
        scanner.feed(body);
        scanner.last().map(Confidence::get)
    }

    #[test]
    fn what_is_stated_is_read_wherever_the_bytes_are_cut() {
        let body = framed(0, &result(0.73).encode_to_vec());
        for cut in 0..body.len() {
            let mut scanner = Scanner::new();
            scanner.feed(&body[..cut]);
            assert_eq!(scanner.last(), None, "nothing is whole before the last byte");
            scanner.feed(&body[cut..]);
            assert_eq!(scanner.last().map(Confidence::get), Some(0.73), "cut at {cut}");
        }
        let mut scanner = Scanner::new();
        body.chunks(1).for_each(|byte| scanner.feed(byte));
        assert_eq!(scanner.last().map(Confidence::get), Some(0.73));
    }

    #[test]
    fn values_that_mean_nothing_are_made_safe() {
        let stated = |confidence| scan(&framed(0, &result(confidence).encode_to_vec()));
        assert_eq!(stated(f64::NAN), None);
        assert_eq!(stated(7.3), Some(1.0));
        assert_eq!(stated(-1.0), Some(0.0));
        assert_eq!(scan(&framed(0, &[])), Some(0.0), "an empty message states zero, as proto3 has it");
    }

    #[test]
    fn of_a_stream_the_last_message_counts() {
        let mut body = framed(0, &result(0.2).encode_to_vec());
        body.extend(framed(0, &result(0.9).encode_to_vec()));
        assert_eq!(scan(&body), Some(0.9));
        body.extend(framed(1, &result(0.5).encode_to_vec()));
        assert_eq!(scan(&body), None, "compressed: unknown");
        body.extend(framed(0, &result(0.4).encode_to_vec()));
        assert_eq!(scan(&body), Some(0.4), "and the next message is found again");
    }

    #[test]
    fn unknown_fields_are_passed_over() {
        // Fields 15 (varint), 16 (fixed32), 17 (fixed64) and 2000 (bytes) around the confidence.
        let mut message = vec![0x78, 0xff, 0x01, 0x85, 0x01, 1, 2, 3, 4, 0x89, 0x01, 1, 2, 3, 4, 5, 6, 7, 8];
        message.push(0x11);
        message.extend(0.25f64.to_le_bytes());
        message.extend([0x82, 0x7d, 3, 9, 9, 9]);
        assert_eq!(scan(&framed(0, &message)), Some(0.25));
    }

    #[test]
    fn what_the_decoder_refuses_states_nothing_and_never_stops_the_scan() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let good = framed(0, &result(0.6).encode_to_vec());
        for _ in 0..20_000 {
            let length = random() % 24;
            let message: Vec<u8> = (0..length).map(|_| (random() >> 13) as u8).collect();
            let mut body = framed(0, &message);
            if let Ok(decoded) = ConfidenceResult::decode(message.as_slice()) {
                let expected = Confidence::stated(decoded.confidence).map(Confidence::get);
                // Groups are decoded by prost, and unknown here.
                let got = scan(&body);
                assert!(got == expected || got.is_none(), "{message:x?}");
            }
            body.extend(&good);
            assert_eq!(scan(&body), Some(0.6), "{message:x?}");
        }
    }
}
