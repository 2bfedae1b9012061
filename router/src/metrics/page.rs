//! The metrics page in the two formats that scrapers ask for.
//!
//! The encoder writes OpenMetrics. Prometheus' older text format is a rewriting of that, line by
//! line: it has no units, no end mark and no infos, and counters are declared with their `_total`.
//! Tools that read only the older one (promtool, the inference extension's endpoint picker) would
//! refuse an OpenMetrics page with an info in it.

/// A format of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// What a scraper's Accept header asks for; the text format if it does not name `OpenMetrics`.
    pub fn accepted(accept: Option<&str>) -> Self {
        if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// Its media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// An OpenMetrics page in the text format.
pub(super) fn to_text(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    // HELP comes before TYPE, which decides about the name in both.
    let mut help: Option<(&str, &str)> = None;
    for line in page.lines() {
        if let Some((name, words)) = rest(line, "# HELP ") {
            help = Some((name, words));
        } else if let Some((name, kind)) = rest(line, "# TYPE ") {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, words)) = help.take() {
                push(&mut text, &["# HELP ", name, suffix, " ", words, "\n"]);
            }
            push(&mut text, &["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            push(&mut text, &[line, "\n"]);
        }
    }
    text
}

fn rest<'a>(line: &'a str, prefix: &str) -> Option<(&'a str, &'a str)> {
    line.strip_prefix(prefix)?.split_once(' ')
}

fn push(text: &mut String, parts: &[&str]) {
    for part in parts {
        text.push_str(part);
    }
}
