//! Messages as short words, for traces.

use std::fmt::Write as _;

use dopd_mock::seats::LinkMessage;
use dopd_router::wire::worker::{
    Report, attach_request, attach_response, command, link_frame::Kind, open,
};

/// What a worker says to the router.
pub(crate) fn up(kind: &attach_request::Kind) -> String {
    match kind {
        attach_request::Kind::Hello(hello) => format!("hello of {}", hello.worker),
        attach_request::Kind::Report(said) => report(said),
    }
}

fn report(r: &Report) -> String {
    let mut text = format!("report({})", r.session & 0xF_FFFF);
    // Writing into a String cannot fail.
    if !r.opened_slots.is_empty() {
        let _ = write!(text, " opened{:?}", r.opened_slots);
    }
    if !r.arrived_slots.is_empty() {
        let _ = write!(text, " arrived{:?}@{:?}", r.arrived_slots, r.arrived_pos);
    }
    if !r.token_slots.is_empty() {
        let _ = write!(text, " tokens{:?}={:?}", r.token_slots, r.tokens);
    }
    for (slot, why) in r.closed_slots.iter().zip(r.closed_reasons()) {
        let why = why.as_str_name().trim_start_matches("CLOSE_REASON_");
        let _ = write!(text, " closed[{slot}]={}", why.to_lowercase());
    }
    let (free, owned, fenced) = (r.pages_free, r.pages_owned, r.pages_fenced);
    let _ = write!(text, " pages {free}+{owned}+{fenced}");
    if r.draining {
        text.push_str(" draining");
    }
    text
}

/// What the router says to a worker.
pub(crate) fn down(kind: &attach_response::Kind) -> String {
    match kind {
        attach_response::Kind::Welcome(welcome) => {
            format!("welcome({})", welcome.session & 0xF_FFFF)
        }
        attach_response::Kind::Refusal(refusal) => format!("refusal: {}", refusal.message),
        attach_response::Kind::Cmd(cmd) => {
            let mut text = format!("cmd({})", cmd.session & 0xF_FFFF);
            for command in &cmd.commands {
                let _ = write!(text, " {}", command_word(command.kind.as_ref()));
            }
            text
        }
    }
}

fn command_word(kind: Option<&command::Kind>) -> String {
    match kind {
        None => "nothing".to_owned(),
        Some(command::Kind::Open(open)) => {
            let (slot, pages, label) = (open.slot, open.pages, &open.request_id);
            match &open.kind {
                Some(open::Kind::Compute(compute)) => {
                    let have = compute.answer.len();
                    format!("Open[{slot}] {label} compute, {pages} pages, have {have}")
                }
                Some(open::Kind::Import(import)) => {
                    let have = import.have;
                    format!("Open[{slot}] {label} import, {pages} pages, have {have}")
                }
                None => format!("Open[{slot}] of no kind"),
            }
        }
        Some(command::Kind::Send(send)) => match &send.grant {
            Some(grant) => format!(
                "Send[{}] to {} {:04x}",
                send.slot,
                grant.worker,
                short(grant.nonce)
            ),
            None => format!("Send[{}] none", send.slot),
        },
        Some(command::Kind::Close(close)) => format!("Close[{}]", close.slot),
        Some(command::Kind::SetRole(role)) => {
            format!("SetRole {:?} epoch {}", role.role(), role.epoch)
        }
    }
}

/// What travels on a data link.
pub(crate) fn link(message: &LinkMessage) -> String {
    match &message.kind {
        Kind::Begin(begin) => format!("Begin {:04x}", short(begin.nonce)),
        Kind::Go(go) => format!("Go {:04x} {:?}", short(go.nonce), go.pages),
        Kind::Write(write) => {
            let end = write.first + write.count;
            format!("Write {:04x} {}..{end}", short(write.nonce), write.first)
        }
        Kind::End(end) if end.ok => format!("End {:04x} ok, pos {}", short(end.nonce), end.pos),
        Kind::End(end) => format!("End {:04x} aborted", short(end.nonce)),
        other => format!("{other:?}"),
    }
}

/// Enough of a nonce to tell it from others.
fn short(nonce: u64) -> u64 {
    nonce & 0xFFFF
}
