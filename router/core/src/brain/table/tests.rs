//! Both tables as the design prints them: one line a row, one word a cell. `-` ignore, `!` break.

use super::{super::place::Place, *};
use crate::brain::slots::{SlotCell, SlotInput, SlotState, slot_cell};

const COLUMNS: [PhaseKind; 5] = [
    PhaseKind::Wait,
    PhaseKind::Placing,
    PhaseKind::Run,
    PhaseKind::Moving,
    PhaseKind::Shipping,
];

fn word(cell: Cell) -> &'static str {
    match cell {
        Cell::Ignore => "-",
        Cell::Break(_) => "!",
        Cell::OpenCurrent(_) => "open_cur",
        Cell::OpenNextPlanCurrent { .. } => "open_nxt+plan",
        Cell::OpenNext(_) => "open_nxt",
        Cell::OpenCurrentAndSend => "open_cur+send",
        Cell::Send => "send",
        Cell::Deliver(_) => "deliver",
        Cell::Switch(_) => "switch",
        Cell::Finish => "finish",
        Cell::Replay(_) => "replay",
        Cell::GiveUpPlace => "close_nxt+wait",
        Cell::CloseNext => "close_nxt",
        Cell::GiveUpNext => "close_nxt+stay",
        Cell::End(_) => "end",
    }
}

#[test]
fn every_cell_of_request_at_the_router() {
    let pair = Place::Pair {
        prefill: 0,
        decode: 1,
    };
    let other = CloseReason::Preempted;
    let rows = [
        (Input::Place(Place::Keep(0)), "open_cur - - - -"),
        (Input::Place(pair), "open_nxt+plan - - - -"),
        (Input::MoveTo(0), "- - open_nxt - -"),
        (Input::Opened, "- open_cur+send - send !"),
        (
            Input::TokensCurrent(Tokens(1)),
            "- - deliver deliver deliver",
        ),
        (Input::TokensOther, "- - - - -"),
        (Input::Arrived(Tokens(1)), "- ! - ! switch"),
        (Input::Finished, "- ! finish finish finish"),
        (Input::ClosedCurrent(other), "- ! replay replay replay"),
        (
            Input::ClosedNext,
            "- close_nxt+wait - close_nxt close_nxt+stay",
        ),
        (
            Input::LostCurrent(Loss::Died),
            "- close_nxt+wait replay replay replay",
        ),
        (
            Input::LostNext,
            "- close_nxt+wait - close_nxt close_nxt+stay",
        ),
        (Input::DrainsCurrent, "- close_nxt+wait - - -"),
        (Input::DrainsNext, "- close_nxt+wait - close_nxt -"),
        (Input::HandoffTimer, "- - - - close_nxt+stay"),
        (Input::Cancel, "end end end end end"),
        (Input::Deadline, "end end end end end"),
        (Input::NoWorker, "end - - - -"),
    ];
    for (input, expected) in rows {
        let row = COLUMNS.map(|phase| word(cell(input, phase))).join(" ");
        assert_eq!(row, expected, "{input:?}");
    }
}

#[test]
fn every_cell_of_slot_at_the_router() {
    let columns = [
        SlotState::Free,
        SlotState::Planned,
        SlotState::Open,
        SlotState::Closing,
    ];
    let rows = [
        (SlotInput::OpenGoesOut, "open open ! !"),
        (SlotInput::WantClosed, "- free close -"),
        (SlotInput::Said, "! ! tell -"),
        (SlotInput::Closed, "! ! tell+free free"),
    ];
    for (input, expected) in rows {
        let row = columns.map(|state| match slot_cell(input, state) {
            SlotCell::Ignore => "-",
            SlotCell::Break => "!",
            SlotCell::ToOpen => "open",
            SlotCell::ToFree => "free",
            SlotCell::SendClose => "close",
            SlotCell::Tell => "tell",
            SlotCell::TellThenFree => "tell+free",
        });
        assert_eq!(row.join(" "), expected, "{input:?}");
    }
}
