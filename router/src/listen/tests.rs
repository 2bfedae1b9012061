use http_body_util::Full;
use tokio::{io::AsyncReadExt as _, task::LocalSet};

use super::*;
use crate::metrics::Metrics;

const BOUNDS: Bounds = Bounds {
    versions: Versions::Both,
    connections_max: 8,
    streams_max: 8,
    head_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(10),
    age_max: Duration::from_secs(60),
    stall_timeout: Duration::from_secs(10),
};

/// Panics at `/defect`.
#[derive(Clone, Debug)]
struct Defective(Metrics);

impl Handler for Defective {
    type Body = Full<Bytes>;

    async fn answer(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        assert_ne!(request.uri().path(), "/defect");
        Response::new(Full::from("fine"))
    }

    fn defect(&self) -> Response<Full<Bytes>> {
        self.0.panicked();
        Response::new(Full::from(DEFECT))
    }

    fn tick(&self, _: Instant) {}

    fn connected(&self) -> Connection {
        self.0.connection("test")
    }

    fn turned_away(&self) {}
}

#[test]
fn a_panic_costs_its_own_request_only() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let metrics = Metrics::new("mock");
    let handler = Defective(metrics.clone());
    let text = LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Stop::default();
        let server = serve(listener, BOUNDS, handler, stop.clone());
        let server = tokio::task::spawn_local(server);
        // On one connection: the second request finds it whole.
        let mut stream = TcpStream::connect(address).await.unwrap();
        let asks = "GET /defect HTTP/1.1\r\nhost: x\r\n\r\n\
                    GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(asks.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        stop.end.cancel();
        server.await.unwrap();
        text
    });
    assert!(text.contains(DEFECT) && text.ends_with("fine"), "{text}");
    let page = metrics.render(crate::metrics::Format::Text);
    assert!(
        page.contains("dopd_panics_total{model=\"mock\"} 1"),
        "{page}"
    );
}
