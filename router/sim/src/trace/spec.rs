//! Arrivals in one line: `poisson:rate=8,prompt=1024~0.8,output=128,seconds=600`.

use std::fmt;

use super::read::{ROWS_MAX, SECONDS_MAX, TOKENS_MAX};

const SECONDS_DEFAULT: f64 = 600.0;
/// Highest rate in requests per second.
const RATE_MAX: f64 = 1e6;
/// Largest coefficient of variation.
const CV_MAX: f64 = 100.0;
/// Largest deviation of a logarithm of lengths.
const SIGMA_MAX: f64 = 5.0;
const ROUNDS_MAX: f64 = 1_000.0;
const TENANTS_MAX: f64 = 1e6;
const GRAMMAR: &str = "poisson:rate=R,prompt=N,output=N; gamma:cv=C,...; \
     shift:a=FILE,b=FILE,rate=R; minutes:shape=FILE,...; with seconds=S, tenants=N, lengths=FILE; \
     R and N may drift (2..8), N may vary (1024~0.8: lognormal)";

/// A number, or one that goes from the first to the last over the trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// At the start.
    pub first: f64,
    /// At the end.
    pub last: f64,
}

impl Range {
    /// Whether both ends differ.
    pub fn drifts(self) -> bool {
        (self.first - self.last).abs() > 0.0
    }

    /// At a part of the trace, 0 to 1.
    pub fn at(self, part: f64) -> f64 {
        self.first + (self.last - self.first) * part
    }
}

/// Tokens of prompts or answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lengths {
    /// Their median.
    pub tokens: Range,
    /// Deviation of their logarithm; 0: all equal.
    pub sigma: f64,
}

/// When requests come.
#[derive(Clone, Debug, PartialEq)]
pub enum Process {
    /// Gaps of a Gamma distribution of this coefficient of variation; 1 is Poisson.
    Renewal {
        /// 1 is Poisson, more comes in bursts.
        cv: f64,
    },
    /// Poisson; the lengths change abruptly between those of two traces.
    Shift {
        /// The first one's file.
        a: String,
        /// The other one's.
        b: String,
        /// How often both have their turn.
        rounds: f64,
    },
    /// Poisson with the load of a file, minute by minute.
    Minutes {
        /// The file.
        shape: String,
    },
}

/// What is to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// As it was written.
    pub text: String,
    /// When requests come.
    pub process: Process,
    /// Requests per second.
    pub rate: Range,
    /// Length of the trace; of one turn for [`Process::Shift`].
    pub seconds: f64,
    /// File from which pairs of lengths are drawn, instead of `prompt` and `output`.
    pub lengths: Option<String>,
    /// Prompts.
    pub prompt: Lengths,
    /// Answers.
    pub output: Lengths,
    /// Requests belong to so many tenants by chance, numbered from 1; 0: to nobody.
    pub tenants: u32,
}

/// A line that says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError {
    /// Character of the line, from 1.
    pub column: usize,
    /// What is there.
    pub value: String,
    /// What should be.
    pub expected: String,
}

impl fmt::Display for SpecError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            value, expected, ..
        } = self;
        write!(to, "column {}: {value:?}, expected {expected}", self.column)
    }
}

impl std::error::Error for SpecError {}

/// One `key=value` and where it begins.
#[derive(Clone, Copy)]
struct Pair<'a> {
    key: &'a str,
    value: &'a str,
    column: usize,
}

impl Spec {
    /// Whether `text` is meant as one rather than as the name of a file.
    pub fn is_one(text: &str) -> bool {
        let kind = text.split(':').next().unwrap_or_default();
        text.contains(':') && ["poisson", "gamma", "shift", "minutes"].contains(&kind)
    }

    /// Reads `KIND:key=value,...`.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let Some((kind, rest)) = text.split_once(':') else {
            return Err(wrong(1, text, GRAMMAR));
        };
        let mut pairs = Vec::new();
        let mut column = kind.len() + 2;
        for word in rest.split(',') {
            let Some((key, value)) = word.split_once('=') else {
                return Err(wrong(column, word, GRAMMAR));
            };
            pairs.push(Pair { key, value, column });
            column += word.len() + 1;
        }
        let mut words = Words { pairs, kind };
        let spec = words.spec(text)?;
        match words.pairs.first() {
            Some(left) => Err(wrong(left.column, left.key, &format!("a key of {GRAMMAR}"))),
            None => Ok(spec),
        }
    }
}

struct Words<'a> {
    pairs: Vec<Pair<'a>>,
    kind: &'a str,
}

impl<'a> Words<'a> {
    fn spec(&mut self, text: &str) -> Result<Spec, SpecError> {
        let process = match self.kind {
            "poisson" => Process::Renewal { cv: 1.0 },
            "gamma" => Process::Renewal {
                cv: self.number("cv", None, (0.01, CV_MAX))?,
            },
            "shift" => Process::Shift {
                a: self.needed("a")?.value.to_owned(),
                b: self.needed("b")?.value.to_owned(),
                rounds: libm::round(self.number("rounds", Some(2.0), (1.0, ROUNDS_MAX))?),
            },
            "minutes" => Process::Minutes {
                shape: self.needed("shape")?.value.to_owned(),
            },
            _ => return Err(wrong(1, self.kind, GRAMMAR)),
        };
        let is_shift = matches!(process, Process::Shift { .. });
        let lengths = self.take("lengths").map(|pair| pair.value.to_owned());
        let (prompt, output) = if is_shift || lengths.is_some() {
            let any = Lengths {
                tokens: Range {
                    first: 1.0,
                    last: 1.0,
                },
                sigma: 0.0,
            };
            (any, any)
        } else {
            (self.lengths("prompt")?, self.lengths("output")?)
        };
        let seconds_default = if is_shift { 300.0 } else { SECONDS_DEFAULT };
        let seconds = self.number("seconds", Some(seconds_default), (0.001, SECONDS_MAX))?;
        let rate = match self.take("rate") {
            Some(pair) => Self::range(pair, (1e-6, RATE_MAX))?,
            None if is_shift => Range {
                first: 1.0,
                last: 1.0,
            },
            None => return Err(wrong(1, self.kind, "rate=REQUESTS_PER_SECOND")),
        };
        if rate.first.max(rate.last) * seconds > ROWS_MAX as f64 {
            let expected = format!("at most {ROWS_MAX} requests in all");
            return Err(wrong(1, text, &expected));
        }
        let tenants = self.number("tenants", Some(0.0), (0.0, TENANTS_MAX))?;
        Ok(Spec {
            text: text.to_owned(),
            process,
            rate,
            seconds,
            lengths,
            prompt,
            output,
            tenants: whole(tenants),
        })
    }

    fn take(&mut self, key: &str) -> Option<Pair<'a>> {
        let at = self.pairs.iter().position(|pair| pair.key == key)?;
        Some(self.pairs.remove(at))
    }

    fn needed(&mut self, key: &str) -> Result<Pair<'a>, SpecError> {
        self.take(key)
            .ok_or_else(|| wrong(1, self.kind, &format!("{key}=...; {GRAMMAR}")))
    }

    fn number(
        &mut self,
        key: &str,
        default: Option<f64>,
        limits: (f64, f64),
    ) -> Result<f64, SpecError> {
        match (self.take(key), default) {
            (Some(pair), _) => Self::value(pair, pair.value, limits),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(wrong(1, self.kind, &format!("{key}=NUMBER"))),
        }
    }

    fn lengths(&mut self, key: &str) -> Result<Lengths, SpecError> {
        let pair = self.needed(key)?;
        let (tokens, sigma) = pair.value.split_once('~').unwrap_or((pair.value, "0"));
        let median = Pair {
            value: tokens,
            ..pair
        };
        Ok(Lengths {
            tokens: Self::range(median, (1.0, f64::from(TOKENS_MAX)))?,
            sigma: Self::value(pair, sigma, (0.0, SIGMA_MAX))?,
        })
    }

    fn range(pair: Pair<'_>, limits: (f64, f64)) -> Result<Range, SpecError> {
        let (first, last) = pair.value.split_once("..").unwrap_or((pair.value, ""));
        let first = Self::value(pair, first, limits)?;
        let last = if last.is_empty() {
            first
        } else {
            Self::value(pair, last, limits)?
        };
        Ok(Range { first, last })
    }

    fn value(pair: Pair<'_>, text: &str, (low, high): (f64, f64)) -> Result<f64, SpecError> {
        let number: f64 = text.parse().unwrap_or(f64::NAN);
        if (low..=high).contains(&number) {
            return Ok(number);
        }
        let column = pair.column + pair.key.len() + 1;
        let expected = format!("{} as a number from {low} to {high}", pair.key);
        Err(wrong(column, pair.value, &expected))
    }
}

fn wrong(column: usize, value: &str, expected: &str) -> SpecError {
    SpecError {
        column,
        value: value.to_owned(),
        expected: expected.to_owned(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be between 0 and a million"
)]
fn whole(value: f64) -> u32 {
    libm::round(value) as u32
}
