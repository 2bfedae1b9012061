//! The links on which a worker ships, as it tells them: checked, and made what the status page
//! shows.

use crate::{
    status::LinkStatus,
    wire::worker::Report,
    workers::report::{Malformed, malformed},
};

/// Most links that a report may tell: as many as a worker takes.
const LINKS_MAX: usize = 256;
/// Bytes of a peer's or a transport's name.
const NAME_BYTES_MAX: usize = 64;

/// Checks the links of a report.
pub(super) fn check(report: &Report) -> Result<(), Malformed> {
    let links = &report.links;
    if links.len() > LINKS_MAX {
        return malformed(format!(
            "links holds {} entries, at most {LINKS_MAX}",
            links.len()
        ));
    }
    if !report.links_changed && !links.is_empty() {
        return malformed("links are told, but links_changed is false".to_owned());
    }
    let names =
        (links.iter()).flat_map(|link| [("peer", &link.peer), ("transport", &link.transport)]);
    for (field, name) in names {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return malformed(format!(
                "links.{field} has {} bytes, 1 to {NAME_BYTES_MAX} are taken",
                name.len()
            ));
        }
        // Shown in terminals.
        if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return malformed(format!("links.{field} {name:?} is not of printable ASCII"));
        }
    }
    Ok(())
}

/// All links of the worker, if it told them anew.
pub(super) fn take(report: &mut Report) -> Option<Vec<LinkStatus>> {
    report.links_changed.then(|| {
        (std::mem::take(&mut report.links).into_iter())
            .map(|link| LinkStatus {
                peer: link.peer,
                transport: link.transport,
                bytes_per_s: link.bytes_per_s,
            })
            .collect()
    })
}
