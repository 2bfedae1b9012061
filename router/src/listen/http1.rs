//! Framing of HTTP/1.1, read strictly: what two readers of one stream could read differently is
//! made unreadable before hyper sees it, which then answers 400 and closes the connection.
//!
//! hyper and its parser are lenient where RFC 9112 lets a recipient be: a bare LF ends a line,
//! several equal lengths are one, a coding before `chunked` is read past, a fragment is dropped,
//! any number of hosts passes. A proxy before us may have read the same bytes otherwise. Heads are
//! followed here byte by byte and bodies by their length; behind a chunked request nothing is
//! followed, so its connection ends with its answer ([`closes`]).
//!
//! What stays as hyper has it: empty lines before a request are skipped and a chunk may have an
//! extension (both RFC 9112 demands); `Expect` of something unknown is ignored (it may be);
//! `Upgrade` is ignored (it may be); an absolute target wins over `Host` (it must); a target that
//! is too long gets 431, not 414. What is refused here gets hyper's 400, which has no body.

use hyper::{
    HeaderMap, Version,
    header::{CONNECTION, HeaderValue, TRANSFER_ENCODING},
};

/// What of a line is kept: far more than any that matters for framing.
const LINE_BYTES_KEPT: usize = 512;
/// A byte that no head may have.
const POISON: u8 = 0;
/// Ends a head behind [`POISON`]: hyper parses no head before its end.
pub(super) const HEAD_END: &[u8] = b"\r\n\r\n";
/// Last bytes of the first line of a request.
const HTTP_1_0: u64 = u64::from_be_bytes(*b"HTTP/1.0");

/// Follows the requests of one connection.
#[derive(Debug, Default)]
pub(super) struct Heads {
    at: At,
    /// The line so far, without its end; no more than [`LINE_BYTES_KEPT`] of it.
    line: Vec<u8>,
    line_bytes: usize,
    /// The last byte was CR: LF must follow.
    after_cr: bool,
    /// The last eight bytes of the line.
    tail: u64,
    head: Head,
}

/// Where in the stream the next byte is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Before a request, or in its first line.
    #[default]
    Request,
    Header,
    Body(u64),
    /// Behind a chunked request.
    Lost,
    /// Behind the byte that was spoilt.
    Refused,
}

/// What the head so far says.
#[derive(Debug, Default)]
struct Head {
    is_1_0: bool,
    length: Option<u64>,
    is_chunked: bool,
    hosts: usize,
}

/// Two readers could disagree.
struct Ambiguous;

impl Heads {
    /// Whether a head has begun and is not complete.
    pub(super) fn is_in_head(&self) -> bool {
        match self.at {
            At::Request => self.line_bytes > 0,
            At::Header => true,
            At::Body(_) | At::Lost | At::Refused => false,
        }
    }

    /// Whether an ambiguity was found: what the client sends from then on is not to be read.
    pub(super) fn is_refused(&self) -> bool {
        self.at == At::Refused
    }

    /// Looks at bytes in their order, and spoils the one at which an ambiguity is certain. Returns
    /// how many may be read.
    pub(super) fn see(&mut self, bytes: &mut [u8]) -> usize {
        let total = bytes.len();
        let mut rest = bytes;
        while let Some((first, after)) = rest.split_first_mut() {
            match &mut self.at {
                At::Lost => return total,
                At::Refused => return total - after.len() - 1,
                At::Body(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX);
                    let taken = here.min(after.len() + 1);
                    *left -= taken as u64;
                    if *left == 0 {
                        self.at = At::Request;
                    }
                    rest = &mut after[taken - 1..];
                }
                At::Request | At::Header => {
                    if self.head_byte(*first).is_err() {
                        *first = POISON;
                        self.at = At::Refused;
                        return total - after.len();
                    }
                    rest = after;
                }
            }
        }
        total
    }

    fn head_byte(&mut self, byte: u8) -> Result<(), Ambiguous> {
        match byte {
            b'\r' if !self.after_cr => {
                self.after_cr = true;
                return Ok(());
            }
            b'\n' if self.after_cr => {
                self.after_cr = false;
                let ended = self.line_end();
                self.line.clear();
                self.line_bytes = 0;
                return ended;
            }
            // A CR without LF, or LF without CR.
            _ if self.after_cr || byte == b'\n' => return Err(Ambiguous),
            // hyper would drop a fragment, and read bytes above 127 as some text.
            b'#' | 0x80.. if self.at == At::Request => return Err(Ambiguous),
            _ => {}
        }
        self.tail = self.tail << 8 | u64::from(byte);
        self.line_bytes += 1;
        if self.line.len() < LINE_BYTES_KEPT {
            self.line.push(byte);
        }
        Ok(())
    }

    fn line_end(&mut self) -> Result<(), Ambiguous> {
        if self.at == At::Request {
            if self.line.is_empty() {
                return Ok(());
            }
            self.at = At::Header;
            self.head = Head {
                is_1_0: self.tail == HTTP_1_0,
                ..Head::default()
            };
            return first_line(&self.line);
        }
        if self.line.is_empty() {
            self.at = self.head.end()?;
            return Ok(());
        }
        let is_whole = self.line_bytes == self.line.len();
        self.head.header(&self.line, is_whole)
    }
}

/// The target has one of the four forms.
fn first_line(line: &[u8]) -> Result<(), Ambiguous> {
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next(), words.next().unwrap_or_default());
    let starts = |scheme: &[u8]| {
        let start = target.get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    let is_known = target.starts_with(b"/") || starts(b"http://") || starts(b"https://");
    let is_known = is_known || target == b"*" || method == Some(b"CONNECT");
    is_known.then_some(()).ok_or(Ambiguous)
}

impl Head {
    fn header(&mut self, line: &[u8], is_whole: bool) -> Result<(), Ambiguous> {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        // Without a colon, with a blank before it, folded: hyper refuses those.
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        let (is_length, is_coding, is_host) =
            (is("content-length"), is("transfer-encoding"), is("host"));
        if (is_length || is_coding || is_host) && !is_whole {
            return Err(Ambiguous);
        }
        if is_length {
            let length = number(value).ok_or(Ambiguous)?;
            if self.length.replace(length).is_some() {
                return Err(Ambiguous);
            }
        }
        if is_coding {
            let is_second = std::mem::replace(&mut self.is_chunked, true);
            if is_second || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Ambiguous);
            }
        }
        if is_host {
            self.hosts += 1;
            if !value.iter().copied().all(is_host_byte) {
                return Err(Ambiguous);
            }
        }
        Ok(())
    }

    fn end(&self) -> Result<At, Ambiguous> {
        let hosts_least = usize::from(!self.is_1_0);
        if !(hosts_least..=1).contains(&self.hosts) {
            return Err(Ambiguous);
        }
        match (self.is_chunked, self.length) {
            (true, Some(_)) => Err(Ambiguous),
            (true, None) if self.is_1_0 => Err(Ambiguous),
            (true, None) => Ok(At::Lost),
            (false, None | Some(0)) => Ok(At::Request),
            (false, Some(length)) => Ok(At::Body(length)),
        }
    }
}

/// Digits and nothing else.
fn number(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text)
        .ok()
        .filter(|_| is_number)?
        .parse()
        .ok()
}

/// Of a name, an address or a port (RFC 3986, without commas: those make a list).
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(&byte)
}

/// Whether the connection of this request must end with its answer: where a chunked body ends, only
/// hyper knows.
pub(super) fn closes(version: Version, headers: &HeaderMap) -> bool {
    version <= Version::HTTP_11 && headers.contains_key(TRANSFER_ENCODING)
}

/// Makes an answer the last of its connection.
pub(super) fn close(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What may be read of `bytes`, cut into pieces at `cuts`.
    fn seen(bytes: &[u8], cuts: &[usize]) -> (Vec<u8>, Heads) {
        let (mut out, mut heads) = (Vec::new(), Heads::default());
        let mut start = 0;
        for &cut in cuts.iter().chain([&bytes.len()]) {
            let end = cut.clamp(start, bytes.len());
            let mut piece = bytes[start..end].to_vec();
            let readable = heads.see(&mut piece);
            out.extend_from_slice(&piece[..readable]);
            start = end;
        }
        (out, heads)
    }

    const GOOD: &str = "POST / HTTP/1.1\r\nHost: a:1\r\nContent-Length: 3\r\n\r\nx\ny\r\n\
                        GET http://a/b HTTP/1.0\r\n\r\nOPTIONS * HTTP/1.1\r\nhost:\r\n\r\n";

    #[test]
    fn requests_in_a_row_pass_untouched() {
        let (out, heads) = seen(GOOD.as_bytes(), &[]);
        assert_eq!(out, GOOD.as_bytes());
        assert!(!heads.is_in_head());
        assert!(seen(b"\r\nG", &[]).1.is_in_head());
    }

    #[test]
    fn a_body_is_no_head_however_it_looks() {
        let body = "GET / HTTP/1.1\nhost: x, y\n\n#\r";
        let raw = format!(
            "PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}GET / HTTP/1.1\n",
            body.len()
        );
        let (out, _) = seen(raw.as_bytes(), &[]);
        let (last, before) = out.split_last().unwrap();
        assert_eq!((*last, before), (POISON, &raw.as_bytes()[..raw.len() - 1]));
    }

    proptest! {
        #[test]
        fn pieces_change_nothing(
            bytes in "(GET|[\r\n :#a0]|HTTP/1.[01]|host: |content-length: |chunked|/){0,60}",
            mut cuts in proptest::collection::vec(0_usize..200, 0..8),
        ) {
            cuts.sort_unstable();
            let whole = seen(bytes.as_bytes(), &[]);
            let pieces = seen(bytes.as_bytes(), &cuts);
            prop_assert_eq!(&whole.0, &pieces.0);
            prop_assert_eq!(whole.1.is_in_head(), pieces.1.is_in_head());
            prop_assert_eq!(whole.1.is_refused(), pieces.1.is_refused());
            prop_assert!(pieces.1.line.len() <= LINE_BYTES_KEPT);
        }
    }
}
