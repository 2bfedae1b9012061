//! One attachment from its hello to its end, event by event.
//!
//! Nothing in here waits or looks at a clock: `session` brings what the stream and the timer say,
//! the simulation (`sim`) what it likes.

use std::{rc::Rc, sync::Arc};

use dopd_core::{event::Suspicion, ids::SessionId};

use crate::{
    metrics::SessionEnd,
    streams::{
        front::Front,
        messages::{BrainInput, Joined},
    },
    wire::worker::{Hello, KvCheck, KvScrub, Report, Welcome, attach_request},
    workers::{
        Attachments,
        health::{Health, Verdict},
        hello,
        link::{Identity, Link},
        outgoing::Outgoing,
        registry::{Admitted, Refused},
        step,
    },
};

/// An attached worker. Dropping it ends the session: its streams and the brain hear of it.
pub(super) struct Attached {
    attachments: Arc<Attachments>,
    pub(super) link: Rc<Link>,
    health: Health,
    /// Pages that the worker's last report did not account for.
    pages_missing: u64,
    /// Seats that were closed for what the worker said of them.
    pub(super) spoiled: u32,
    /// It broke the protocol.
    is_broken: bool,
}

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Over {
    /// For the account.
    pub(super) cause: SessionEnd,
    /// For people.
    pub(super) why: String,
}

impl Attached {
    /// Checks a hello, takes its worker in and welcomes it.
    pub(super) fn begin(
        attachments: &Arc<Attachments>,
        front: &Rc<Front>,
        outgoing: Arc<Outgoing>,
        hello: Hello,
    ) -> Result<Self, Refused> {
        let (admitted, joined) = admit(attachments, front, &hello)?;
        let session = admitted.session;
        let identity = Identity {
            session,
            name: hello.worker,
            incarnation: hello.incarnation,
            vocab_size: hello.vocab_size,
            pages_total: hello.pages_total,
        };
        let (worker, role, device) = (&identity.name, joined.facts.role, &joined.device);
        tracing::info!(
            worker,
            session = session.0,
            ?role,
            device,
            "worker attached"
        );
        let link = Link::new(identity, Rc::clone(front), outgoing, admitted.stop);
        front.add_link(session, Rc::clone(&link) as Rc<_>);
        if let Some(old) = admitted.replaced {
            front.outbox.to_brain(BrainInput::Lost(old));
        }
        front.outbox.to_brain(BrainInput::Joined(Box::new(joined)));
        let workers = &attachments.config.workers;
        link.outgoing.welcome(Welcome {
            session: session.0,
            router: attachments.router.clone(),
            lease_ms: workers.lease_ms,
            report_interval_ms: workers.report_interval_ms,
            kv_check: kv_check(&workers.kv_check).into(),
            kv_scrub: kv_scrub(&workers.kv_scrub).into(),
            step_policy: Some(step::to_wire(&attachments.config.step)),
            prefix_cache: attachments.config.prefix_cache,
        });
        let attached = Self {
            attachments: Arc::clone(attachments),
            health: Health::new(workers, admitted.stuck_at),
            link,
            pages_missing: 0,
            spoiled: 0,
            is_broken: false,
        };
        if admitted.stuck_at.is_some() {
            let detail = "its process hung in a step when its last session was ended";
            attached.eject(Suspicion::Stuck, detail);
        }
        Ok(attached)
    }

    /// Its session.
    pub(super) fn session(&self) -> SessionId {
        self.link.identity.session
    }

    /// Handles what the worker sent; an error breaks the stream.
    pub(super) fn message(&mut self, kind: Option<attach_request::Kind>) -> Result<(), Over> {
        self.health.heard();
        self.handle(kind).map_err(|why| {
            self.is_broken = true;
            Over {
                cause: SessionEnd::Protocol,
                why: format!("protocol error: {why}"),
            }
        })
    }

    fn handle(&mut self, kind: Option<attach_request::Kind>) -> Result<(), String> {
        let report: Report = match kind {
            Some(attach_request::Kind::Report(report)) => report,
            Some(attach_request::Kind::Hello(_)) => return Err("a second hello".to_owned()),
            None => return Err("an empty message".to_owned()),
        };
        if report.session != self.session().0 {
            // Of an earlier session of the same process: nothing in it is of this one.
            let (worker, session) = (&self.link.identity.name, report.session);
            tracing::debug!(worker, session, "old report");
            return Ok(());
        }
        let is_stuck = self.health.reported(&report);
        self.account(&report);
        let spoiled = (self.link.report(report, is_stuck)).map_err(|error| error.to_string())?;
        self.spoiled += spoiled;
        (0..spoiled).for_each(|_| self.attachments.metrics.output_error());
        Ok(())
    }

    /// Says once that pages do not add up, and again if it gets better or worse.
    fn account(&mut self, report: &Report) {
        let Identity {
            name, pages_total, ..
        } = &self.link.identity;
        let (free, owned) = (report.pages_free, report.pages_owned);
        let (cached, fenced) = (report.pages_cached, report.pages_fenced);
        let sum: u64 = [free, owned, cached, fenced].map(u64::from).iter().sum();
        let missing = u64::from(*pages_total).abs_diff(sum);
        if missing != self.pages_missing && missing > 0 {
            tracing::error!(
                worker = name,
                pages_total,
                free,
                owned,
                cached,
                fenced,
                "the worker has lost count of its pages"
            );
            self.attachments.metrics.kv_accounting_error(name);
        }
        self.pages_missing = missing;
    }

    /// A report interval passed; an error breaks the stream.
    pub(super) fn tick(&mut self) -> Result<(), Over> {
        let verdict = self.health.tick(self.link.is_asked());
        self.judge(verdict)
    }

    /// Carries out what its health asks for; an error breaks the stream.
    fn judge(&self, verdict: Verdict) -> Result<(), Over> {
        match verdict {
            Verdict::Same => Ok(()),
            Verdict::Eject(why, detail) => {
                self.eject(why, &detail);
                Ok(())
            }
            Verdict::End(why) => Err(Over {
                cause: SessionEnd::Silent,
                why,
            }),
            Verdict::EndStuck(why, step) => {
                let Identity {
                    name, incarnation, ..
                } = &self.link.identity;
                (self.attachments.registry).remember_stuck(name, *incarnation, step);
                Err(Over {
                    cause: SessionEnd::Stuck,
                    why,
                })
            }
        }
    }

    fn eject(&self, why: Suspicion, detail: &str) {
        let (worker, session) = (&self.link.identity.name, self.session());
        tracing::warn!(worker, session = session.0, ?why, detail, "worker ejected");
        let suspected = BrainInput::Suspected(session, why);
        self.link.front.outbox.to_brain(suspected);
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let Identity { session, name, .. } = &self.link.identity;
        self.link.front.remove_link(*session);
        self.link.end();
        if self.attachments.registry.remove(name, *session) {
            let input = if self.is_broken {
                BrainInput::Broken(*session)
            } else {
                BrainInput::Lost(*session)
            };
            self.link.front.outbox.to_brain(input);
        }
    }
}

/// Checks a hello and takes its worker in.
fn admit(
    attachments: &Attachments,
    front: &Front,
    hello: &Hello,
) -> Result<(Admitted, Joined), Refused> {
    let geometry = hello::check(hello)?;
    let facts = hello::facts(hello, geometry)?;
    let config = &attachments.config;
    let admitted = attachments.registry.admit(hello, geometry, config)?;
    let joined = Joined {
        session: admitted.session,
        home: front.index,
        facts,
        pid: hello.pid,
        device: hello.device.clone(),
        address: hello.data_address.clone(),
    };
    Ok((admitted, joined))
}

/// A value that the settings allow.
fn kv_check(word: &str) -> KvCheck {
    match word {
        "off" => KvCheck::Off,
        "full" => KvCheck::Full,
        _ => KvCheck::Header,
    }
}

/// A value that the settings allow.
fn kv_scrub(word: &str) -> KvScrub {
    match word {
        "never" => KvScrub::Never,
        "always" => KvScrub::Always,
        _ => KvScrub::Tenant,
    }
}
