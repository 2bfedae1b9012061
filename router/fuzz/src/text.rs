//! Detokenizer and stop strings: however bytes are cut, the text is the same.

use dopd_router::tokens::{Detokenizer, StopMatcher, StopScan, StopStrings};

/// Stop strings are what comes before the second NUL; the rest is the answer, whose tokens are as
/// long as the bits of the first byte say.
pub(crate) fn run(data: &[u8]) {
    let (shape, data) = crate::head(data);
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let mut stop = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let stops = [stop(), stop()];
    let answer = parts.next().unwrap_or_default();
    let include = shape & 1 != 0;
    let long = usize::from(shape >> 1 & 7) + 1;
    let in_pieces = render(answer.chunks(long), &stops, include);
    let whole = render([answer].into_iter(), &stops, include);
    assert_eq!(in_pieces, whole);
    if !whole.1 {
        assert_eq!(whole.0, String::from_utf8_lossy(answer));
    }
}

fn render<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    stops: &[String],
    include: bool,
) -> (String, bool) {
    let mut detokenizer = Detokenizer::default();
    let mut matcher = StopMatcher::new(StopStrings::new(stops), include);
    let (mut text, mut out) = (String::new(), String::new());
    for piece in pieces {
        text.clear();
        detokenizer.push(piece, &mut text);
        if matcher.push(&text, &mut out) == StopScan::Stopped {
            return (out, true);
        }
    }
    text.clear();
    detokenizer.finish(&mut text);
    if matcher.push(&text, &mut out) == StopScan::Stopped {
        return (out, true);
    }
    matcher.finish(&mut out);
    (out, false)
}
