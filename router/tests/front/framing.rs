//! HTTP/1.1 framing, byte for byte: what two readers of one stream could read differently is
//! refused, and the connection closed. The table is `framing.txt`.

use std::{net::SocketAddr, time::Duration};

use dopd_router::{
    config::records::{HttpConfig, LimitsConfig},
    streams::sink::FinishReason,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::fake::{Fake, Step, with_http};

const TABLE: &str = include_str!("framing.txt");
/// Without a byte for this long a connection that has said what it is to say, says no more.
const QUIET: Duration = Duration::from_millis(400);
/// Time for what the table says to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// One line of the table.
struct Row {
    name: &'static str,
    expected: &'static str,
    sent: Vec<u8>,
}

fn rows() -> Vec<Row> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut cells = line.splitn(3, '|').map(str::trim);
            Row {
                name: cells.next().unwrap(),
                expected: cells.next().unwrap(),
                sent: unescape(&expand(cells.next().unwrap())),
            }
        })
        .collect()
}

/// Abbreviations written out.
fn expand(cell: &str) -> String {
    let json = "content-type: application/json";
    let mut text = cell
        .replace("{get}", "GET /health HTTP/1.1\\r\\n")
        .replace(
            "{post}",
            &format!("POST /v1/completions HTTP/1.1\\r\\nhost: x\\r\\n{json}\\r\\n"),
        )
        .replace("{prompt}", r#"{"prompt":"x","max_tokens":1}"#)
        .replace(
            "{smuggled}",
            "GET /version HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n",
        );
    let is_digit = |c: char| c.is_ascii_digit();
    while let Some((before, rest)) = text.split_once('{')
        && let Some((count, rest)) = rest
            .split_once('*')
            .filter(|(n, _)| n.chars().all(is_digit))
    {
        let (what, after) = rest.split_once('}').unwrap();
        text = format!("{before}{}{after}", what.repeat(count.parse().unwrap()));
    }
    text
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next().unwrap() {
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                // Else it is \x and two digits.
                _ => {
                    let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                    u8::from_str_radix(str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
            },
            byte => byte,
        });
    }
    out
}

/// Statuses of all answers, in order.
fn statuses(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let answers = text.split("HTTP/1.").skip(1);
    let statuses: Vec<&str> = answers.filter_map(|answer| answer.get(2..5)).collect();
    statuses.join(",")
}

/// Statuses of all answers, and whether the server closed; as in the table.
async fn observe(address: SocketAddr, raw: &[u8], expected: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(raw).await;
    let mut bytes = Vec::new();
    let end = loop {
        let mut buffer = [0; 4_096];
        let is_said = format!("{} open", statuses(&bytes)) == expected;
        let patience = if is_said { QUIET } else { PATIENCE };
        match tokio::time::timeout(patience, stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => break "closed",
            Ok(Ok(count)) => bytes.extend_from_slice(&buffer[..count]),
            Err(_) => break "open",
        }
    };
    format!("{} {end}", statuses(&bytes))
}

#[test]
fn every_row_of_the_table_is_answered_as_it_says() {
    let fake = Fake::new(vec![Step::Text("a"), Step::Finish(FinishReason::Stop)]);
    let (config, limits) = (HttpConfig::default(), LimitsConfig::default());
    with_http(fake, config, limits, |address| async move {
        let rows = rows();
        assert!(rows.len() > 90, "{} rows", rows.len());
        let asked = rows.iter().map(|row| async move {
            let seen = observe(address, &row.sent, row.expected).await;
            let Row { name, expected, .. } = row;
            (seen != *expected).then(|| format!("{name}: {seen}, not {expected}"))
        });
        let wrong = futures_util::future::join_all(asked).await;
        let wrong: Vec<String> = wrong.into_iter().flatten().collect();
        let (bad, total) = (wrong.len(), rows.len());
        assert!(bad == 0, "{bad} of {total}:\n{}", wrong.join("\n"));
        let after = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
        let healthy = "200 open";
        assert_eq!(observe(address, after, healthy).await, healthy);
    });
}
