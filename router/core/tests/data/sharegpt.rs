//! Lengths of real conversations, read by tests of the brain; see the data's README.

/// Prompt and answer tokens of ShareGPT's first exchanges, if the data is here.
pub(super) fn sharegpt() -> Option<Vec<(u32, u32)>> {
    let folder = std::env::var("DOPD_DATA").ok()?;
    let file = format!("{folder}/text/sharegpt_part1.jsonl.gz");
    let zipped = std::process::Command::new("gzip")
        .args(["-dc", &file])
        .output()
        .ok()?;
    let text = String::from_utf8(zipped.stdout).ok()?;
    let lengths = text.lines().map(|line| {
        let row: serde_json::Value = serde_json::from_str(line).expect("a row");
        let tokens = |name: &str| u32::try_from(row[name].as_u64().expect("tokens")).expect("few");
        (
            tokens("prompt_tokens"),
            tokens("response_tokens").min(2_048),
        )
    });
    Some(lengths.collect()).filter(|rows: &Vec<_>| !rows.is_empty())
}
