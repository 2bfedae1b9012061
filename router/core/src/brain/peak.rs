//! How many pages the residents of a pool will need at the worst time to come.
//!
//! A sequence that made k tokens needs `prompt + k + h` tokens' pages once it has made h more, if
//! it is not at its end before: with probability S(k + h) / S(k), by the lengths of late, and never
//! beyond its limit. Over all residents of a pool that is a mean and a variance for each h of a
//! grid; another sequence fits if mean + z x deviation stays within the pool at each of them.
//!
//! **Sums.** A pool keeps both sums, and the most that all could need, for each point of the grid,
//! as integers, so what is added is taken off again exactly. A sequence's part is brought up to
//! date whenever it begins a page, so a decision costs O(grid) however many reside there, a token
//! nothing, a page O(grid). **Error.** At h = 0 the sum is the pages in use, exactly. Beyond, a
//! part is as of at most a page's tokens ago, and rounded up to a page: `peak::tests` holds it to
//! 8 % below and 10 % above the exact sum over residents; it is farthest off where one is alone.
//! Between two points of the grid the need is not looked at, but who reaches its limit there counts
//! in full at the next one. Beyond the last, 8,192 tokens ahead, nothing is: a pool full of answers
//! that are longer is promised by what they need until then, and preempts for the rest.
//!
//! **What is not covered.** The sum of many is taken for normal and residents for independent: at
//! z = 2.33 one in a hundred peaks is higher. Then a worker has no page for a token, preempts a
//! sequence, and it is computed again (`replay`).

use std::cell::OnceCell;

use super::lengths::Lengths;
use crate::units::{Pages, Tokens};

/// Points of the grid: answer tokens from now on.
const HORIZONS: [u32; GRID] = [
    0, 16, 32, 64, 128, 256, 512, 768, 1_024, 2_048, 4_096, 8_192,
];

const GRID: usize = 12;

/// Parts of a token in the sums.
const PARTS: u64 = 16;

/// Pages asked for beyond those that hold prompt and answer so far: a page's tokens to go on with,
/// so that no seat needs more with its first token.
const AHEAD: Tokens = Tokens(1);

/// The same where KV comes from elsewhere: its source makes tokens until it is told to stop.
const AHEAD_IMPORT: Tokens = Tokens(64);

/// What a sequence needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Tokens of the prompt.
    pub(super) prompt: Tokens,
    /// Answer tokens made.
    pub(super) made: Tokens,
    /// Most answer tokens.
    pub(super) max: Tokens,
}

impl Shape {
    /// How likely it is to go on to each point of the grid.
    fn parts(self, lengths: &Lengths) -> [f64; GRID] {
        let left = self.max.minus(self.made).0;
        lengths.go_on(self.made, HORIZONS.map(|horizon| horizon.min(left)))
    }

    /// Prompt and longest answer.
    pub(super) const fn len(self) -> Tokens {
        self.prompt.plus(self.max)
    }

    const fn held(self) -> Tokens {
        self.prompt.plus(self.made)
    }

    /// Tokens that a seat is opened for.
    fn opened(self, is_import: bool) -> Tokens {
        let ahead = if is_import { AHEAD_IMPORT } else { AHEAD };
        self.held().plus(ahead).min(self.len())
    }
}

/// What one resident adds to the sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Curve {
    shape: Shape,
    page_size: u32,
    /// Pages of now.
    pages: Pages,
    /// Predicted at each point of the grid, in parts of a token; 0: it is gone by then.
    means: [u32; GRID],
    /// If it goes on. Kept, as a sum is changed oftener than a curve is drawn.
    mosts: [u32; GRID],
}

impl Curve {
    /// `pages_min`: what it holds in any case.
    fn new(shape: Shape, pages_min: Pages, page_size: u32, parts: &[f64; GRID]) -> Self {
        let page_size = page_size.max(1);
        let left = shape.max.minus(shape.made).0;
        let mut curve = Self {
            shape,
            page_size,
            pages: shape.held().pages(page_size).max(pages_min),
            means: [0; GRID],
            mosts: [0; GRID],
        };
        curve.reach();
        let mut before = 0;
        for (index, &part) in parts.iter().enumerate() {
            // At its limit before the point before: it is gone.
            if index == 0 || before < left {
                curve.means[index] = share(curve.mosts[index], part);
            }
            before = HORIZONS[index];
        }
        curve
    }

    /// The same in a pool of that page size, with so many pages now.
    fn in_pool(&self, page_size: u32, pages: Pages) -> Self {
        let mut curve = Self {
            page_size,
            pages,
            ..*self
        };
        if (page_size, pages) != (self.page_size, self.pages) {
            curve.reach();
        }
        curve
    }

    /// Works out what it needs at each point if it goes on.
    fn reach(&mut self) {
        let left = self.shape.max.minus(self.shape.made).0;
        let (mut before, mut longest) = (None, 0);
        for (most, horizon) in self.mosts.iter_mut().zip(HORIZONS) {
            let more = horizon.min(left);
            if before.replace(more) != Some(more) {
                let held = self.shape.held().plus(Tokens(more));
                let pages = held.pages(self.page_size).max(self.pages);
                let parts = u64::from(pages.0) * u64::from(self.page_size) * PARTS;
                longest = u32::try_from(parts).unwrap_or(u32::MAX);
            }
            *most = longest;
        }
    }

    /// Mean, variance and most at a point; `None`: it is gone by then.
    fn at(&self, index: usize) -> Option<[u64; 3]> {
        let mean = u64::from(self.means[index]);
        let most = u64::from(self.mosts[index]).max(mean);
        (mean > 0).then(|| [mean, mean * (most - mean), most])
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float cast stops at the ends of u32"
)]
fn share(most: u32, part: f64) -> u32 {
    let exact = f64::from(most) * part;
    let whole = exact as u32;
    whole.saturating_add(u32::from(f64::from(whole) < exact))
}

/// Pages that a seat is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// So many, to its end.
    Fixed(Pages),
    /// So many, as it leaves again; what becomes longer is taken for a resident.
    Passing(Pages, Shape),
    /// As many as it needs.
    Grows(Curve),
}

/// What a sequence asks of a pool. Most look at no pool, or at one: curves are drawn when one is
/// asked about.
#[derive(Clone, Debug)]
pub(super) struct Ask<'a> {
    shape: Shape,
    page_size: u32,
    /// `None`: it is promised pages for its longest answer.
    lengths: Option<&'a Lengths>,
    parts: OnceCell<[f64; GRID]>,
    /// Where it computes its prompt, and where its KV comes from elsewhere.
    curves: [OnceCell<Curve>; 2],
}

/// What a seat is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    /// It computes its prompt and goes on.
    Here,
    /// It computes its prompt and hands it off.
    Passing,
    /// Its KV comes from elsewhere.
    Import,
}

impl<'a> Ask<'a> {
    /// `is_whole`: pages for its longest answer.
    pub(super) fn new(shape: Shape, is_whole: bool, page_size: u32, lengths: &'a Lengths) -> Self {
        Self {
            shape,
            page_size,
            lengths: (!is_whole).then_some(lengths),
            parts: OnceCell::new(),
            curves: [const { OnceCell::new() }; 2],
        }
    }

    /// Prompt and longest answer.
    pub(super) const fn len(&self) -> Tokens {
        self.shape.len()
    }

    /// What it is promised there. A pool of another page size rounds to its own pages.
    pub(super) fn claim(&self, stay: Stay, page_size: u32) -> Claim {
        let page_size = page_size.max(1);
        let opened = self.shape.opened(stay == Stay::Import).pages(page_size);
        let Some(lengths) = self.lengths else {
            return Claim::Fixed(self.shape.len().pages(page_size));
        };
        let is_import = match stay {
            Stay::Passing => return Claim::Passing(opened, self.shape),
            Stay::Here => false,
            Stay::Import => true,
        };
        let curve = self.curves[usize::from(is_import)].get_or_init(|| {
            let pages = self.shape.opened(is_import).pages(self.page_size.max(1));
            let parts = self.parts.get_or_init(|| self.shape.parts(lengths));
            Curve::new(self.shape, pages, self.page_size, parts)
        });
        Claim::Grows(curve.in_pool(page_size, opened))
    }
}

impl Claim {
    /// Pages that Open asks for.
    pub(super) const fn pages(&self) -> Pages {
        match self {
            Self::Fixed(pages) | Self::Passing(pages, _) => *pages,
            Self::Grows(curve) => curve.pages,
        }
    }

    /// What becomes of it with so many answer tokens; `None`: nothing changes.
    pub(super) fn grown(&self, made: Tokens, page_size: u32, lengths: &Lengths) -> Option<Self> {
        let (shape, pages) = match *self {
            Self::Fixed(_) => return None,
            Self::Passing(pages, shape) => (shape, pages),
            Self::Grows(curve) => (curve.shape, curve.shape.held().pages(page_size.max(1))),
        };
        let shape = Shape { made, ..shape };
        if shape.held().pages(page_size.max(1)) <= pages {
            return None;
        }
        let held = self.pages();
        let parts = shape.parts(lengths);
        Some(Self::Grows(Curve::new(shape, held, page_size, &parts)))
    }
}

/// How many times its longest self one more sequence can add to the peak at most, at z deviations:
/// roots of sums are no more than the sums of roots, and `p + z sqrt(p (1 - p))` is this at its
/// greatest.
pub(super) fn reach(z: f64) -> f64 {
    f64::midpoint(1.0, (1.0 + z * z).sqrt())
}

/// The sums over the residents of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Peak {
    /// Mean, variance and the most that all could need.
    sums: [[u64; 3]; GRID],
}

impl Peak {
    pub(super) fn add(&mut self, curve: &Curve) {
        self.change(curve, u64::saturating_add);
    }

    pub(super) fn remove(&mut self, curve: &Curve) {
        self.change(curve, u64::saturating_sub);
    }

    fn change(&mut self, curve: &Curve, by: impl Fn(u64, u64) -> u64) {
        for (index, sums) in self.sums.iter_mut().enumerate() {
            let Some(parts) = curve.at(index) else {
                continue;
            };
            for (sum, part) in sums.iter_mut().zip(parts) {
                *sum = by(*sum, part);
            }
        }
    }

    /// Pages that are needed at the worst time, at z deviations above the mean.
    pub(super) fn pages(&self, z: f64, page_size: u32) -> u64 {
        let worst = self.sums.iter().map(|sums| need(*sums, z)).max();
        let per_page = u64::from(page_size.max(1)) * PARTS;
        worst.unwrap_or_default().div_ceil(per_page)
    }

    /// The same, with one more.
    pub(super) fn pages_with(&self, curve: &Curve, z: f64) -> u64 {
        let mut with = *self;
        with.add(curve);
        with.pages(z, curve.page_size)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a float cast stops at the ends of u64, and rounds sums beyond any pool"
)]
fn need([mean, variance, most]: [u64; 3], z: f64) -> u64 {
    // IEEE 754 says what a root is to the last bit.
    let exact = z * (variance as f64).sqrt();
    let whole = exact as u64;
    let above = whole.saturating_add(u64::from((whole as f64) < exact));
    mean.saturating_add(above).min(most)
}

#[cfg(test)]
mod tests;
