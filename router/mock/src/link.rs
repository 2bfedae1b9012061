//! The TCP data link: listener, dialler, handshake, framing.
//!
//! One connection is one link end of the seat table; a task per connection carries frames both ways
//! between the socket and the worker's inbox. `worker` calls it. Frames of one connection arrive in
//! order (contract T1); nothing is resent (T2); a page is copied into its frame (T3); when the task
//! has ended nothing of the connection lands any more (T4).

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use dopd_router::wire::worker::{LinkFrame, LinkHello, LinkWelcome, link_frame::Kind};
use prost::Message;
use subtle::ConstantTimeEq;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

use crate::{
    model::PAGE_BYTES,
    seats::{LinkId, LinkMessage, PeerKey},
    worker::{IN_FLIGHT_BYTES_MAX, Input},
};

/// Version of the framing.
const PROTOCOL: u32 = 1;
/// Longest message of a frame (link.proto).
const MESSAGE_BYTES_MAX: u32 = 1 << 20;
/// Longest payload of a frame (link.proto).
const PAYLOAD_BYTES_MAX: u32 = 64 << 20;
/// Time for connect and handshake together.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Frames that wait for a socket: every write that may be in flight as one page each, and as many
/// again of Begin, Go and End, of which there are at most a few per seat.
pub(crate) const FRAMES_MAX: usize = 2 * (IN_FLIGHT_BYTES_MAX / PAGE_BYTES) as usize;
/// Frames are gathered up to this size for one write to the socket.
const GATHER_BYTES: usize = 256 << 10;
/// Connections of peers; more are closed at once.
const LINKS_IN_MAX: usize = 4_096;
/// Buffer of a reader.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// What a worker shows on its data links.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Name of the worker.
    pub(crate) worker: String,
    /// Random per process start.
    pub(crate) incarnation: u64,
    /// What both sides must agree on.
    pub(crate) layout_hash: u64,
    /// Shared secret; empty if none is required.
    pub(crate) join_token: String,
}

/// Accepts peers for as long as the worker lives.
pub(crate) async fn listen(listener: TcpListener, identity: Identity, inbox: mpsc::Sender<Input>) {
    let mut links = JoinSet::new();
    let mut generation = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) if links.len() < LINKS_IN_MAX => {
                    generation += 1;
                    tracing::debug!(%from, generation, "data link: connection");
                    links.spawn(serve(stream, generation, identity.clone(), inbox.clone()));
                }
                Ok((_, from)) => tracing::warn!(%from, "data link: {LINKS_IN_MAX} links are open"),
                // Out of descriptors, most likely: wait for some to come back.
                Err(error) => {
                    tracing::warn!(%error, "data link: accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = links.join_next() => {}
            () = inbox.closed() => return,
        }
    }
}

async fn serve(stream: TcpStream, generation: u64, identity: Identity, inbox: mpsc::Sender<Input>) {
    let mut stream = BufReader::with_capacity(READ_BUFFER_BYTES, stream);
    match timeout(
        HANDSHAKE_TIMEOUT,
        welcome(&mut stream, generation, &identity),
    )
    .await
    {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return tracing::warn!(%error, "data link: handshake failed"),
        Err(_) => return tracing::warn!("data link: handshake took over {HANDSHAKE_TIMEOUT:?}"),
    }
    let id = LinkId::In(generation);
    let (sender, frames) = mpsc::channel(FRAMES_MAX);
    if inbox.send(Input::LinkUp(id, sender)).await.is_ok() {
        carry(stream, id, frames, &inbox).await;
    }
}

/// Connects to a peer after `delay` and carries its frames until the connection ends.
pub(crate) async fn dial(
    link: u64,
    peer: PeerKey,
    delay: Duration,
    identity: Identity,
    inbox: mpsc::Sender<Input>,
) {
    tokio::time::sleep(delay).await;
    let id = LinkId::Out(link);
    let stream = match timeout(HANDSHAKE_TIMEOUT, hello(&peer, &identity)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return failed(id, &peer, &error.to_string(), &inbox).await,
        Err(_) => return failed(id, &peer, "handshake timed out", &inbox).await,
    };
    let (sender, frames) = mpsc::channel(FRAMES_MAX);
    if inbox.send(Input::LinkUp(id, sender)).await.is_ok() {
        carry(stream, id, frames, &inbox).await;
    }
}

async fn failed(id: LinkId, peer: &PeerKey, error: &str, inbox: &mpsc::Sender<Input>) {
    tracing::warn!(
        peer = peer.worker,
        address = peer.address,
        error,
        "data link: dial failed"
    );
    // The worker is gone if this fails.
    let _ = inbox.send(Input::LinkDown(id)).await;
}

async fn hello(peer: &PeerKey, identity: &Identity) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(&peer.address).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(READ_BUFFER_BYTES, stream);
    let hello = Kind::Hello(LinkHello {
        protocol: PROTOCOL,
        worker: identity.worker.clone(),
        incarnation: identity.incarnation,
        layout_hash: identity.layout_hash,
        join_token: identity.join_token.clone(),
        pool_handle: None,
    });
    send_one(&mut stream, hello).await?;
    match read_frame(&mut stream).await?.kind {
        Kind::Welcome(welcome) if !welcome.error.is_empty() => Err(refused(&welcome.error)),
        Kind::Welcome(welcome)
            if welcome.worker == peer.worker && welcome.incarnation == peer.incarnation =>
        {
            Ok(stream)
        }
        Kind::Welcome(welcome) => Err(refused(&format!(
            "{} {:016x} answers there, expected {} {:016x}",
            welcome.worker, welcome.incarnation, peer.worker, peer.incarnation
        ))),
        _ => Err(refused("welcome expected")),
    }
}

async fn welcome(
    stream: &mut BufReader<TcpStream>,
    generation: u64,
    identity: &Identity,
) -> io::Result<()> {
    stream.get_ref().set_nodelay(true)?;
    let Kind::Hello(hello) = read_frame(stream).await?.kind else {
        return Err(refused("hello expected"));
    };
    let error = judge(&hello, identity);
    let welcome = Kind::Welcome(LinkWelcome {
        worker: identity.worker.clone(),
        incarnation: identity.incarnation,
        generation,
        error: error.clone().unwrap_or_default(),
        nccl_id: Vec::new(),
    });
    send_one(stream, welcome).await?;
    error.map_or(Ok(()), |error| Err(refused(&error)))
}

/// Why a peer may not ship to us, if so.
fn judge(hello: &LinkHello, identity: &Identity) -> Option<String> {
    let token = hello.join_token.as_bytes();
    if !bool::from(token.ct_eq(identity.join_token.as_bytes())) {
        return Some("wrong join token".to_owned());
    }
    if hello.protocol != PROTOCOL {
        return Some(format!("protocol {}, expected {PROTOCOL}", hello.protocol));
    }
    (hello.layout_hash != identity.layout_hash).then(|| {
        let (theirs, ours) = (hello.layout_hash, identity.layout_hash);
        format!(
            "layout hash {theirs:016x}, expected {ours:016x}: another model, page size or dtype"
        )
    })
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// Carries frames both ways until either side ends, then says that nothing can land any more.
async fn carry(
    stream: BufReader<TcpStream>,
    id: LinkId,
    frames: mpsc::Receiver<LinkMessage>,
    inbox: &mpsc::Sender<Input>,
) {
    let (reader, writer) = tokio::io::split(stream);
    let ended = tokio::select! {
        ended = read_all(reader, id, inbox) => ended,
        ended = write_all(writer, id, frames, inbox) => ended,
    };
    match ended {
        Ok(()) => tracing::debug!(?id, "data link: closed"),
        Err(error) => tracing::debug!(?id, %error, "data link: broke"),
    }
    // The worker is gone if this fails.
    let _ = inbox.send(Input::LinkDown(id)).await;
}

async fn read_all(
    mut reader: impl AsyncRead + Unpin,
    id: LinkId,
    inbox: &mpsc::Sender<Input>,
) -> io::Result<()> {
    loop {
        let message = read_frame(&mut reader).await?;
        if inbox.send(Input::Frame(id, message)).await.is_err() {
            return Ok(());
        }
    }
}

async fn write_all(
    mut writer: impl tokio::io::AsyncWrite + Unpin,
    id: LinkId,
    mut frames: mpsc::Receiver<LinkMessage>,
    inbox: &mpsc::Sender<Input>,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    // The sender is dropped to abort the link.
    while let Some(first) = frames.recv().await {
        buffer.clear();
        let mut drained = put_frame(&mut buffer, first)?;
        while buffer.len() < GATHER_BYTES
            && let Ok(next) = frames.try_recv()
        {
            drained += put_frame(&mut buffer, next)?;
        }
        writer.write_all(&buffer).await?;
        if let (LinkId::Out(link), true) = (id, drained > 0)
            && inbox.send(Input::Drained(link, drained)).await.is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}

async fn send_one(stream: &mut BufReader<TcpStream>, kind: Kind) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    let payload = Bytes::new();
    put_frame(&mut buffer, LinkMessage { kind, payload })?;
    stream.write_all(&buffer).await
}

/// Appends one frame; returns the bytes of its payload.
fn put_frame(buffer: &mut BytesMut, message: LinkMessage) -> io::Result<u32> {
    let frame = LinkFrame {
        kind: Some(message.kind),
    };
    let length = u32::try_from(frame.encoded_len()).unwrap_or(u32::MAX);
    let payload = u32::try_from(message.payload.len()).unwrap_or(u32::MAX);
    if length > MESSAGE_BYTES_MAX || payload > PAYLOAD_BYTES_MAX {
        return Err(refused("frame too long to send"));
    }
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(&payload.to_le_bytes());
    frame.encode(buffer).map_err(io::Error::other)?;
    buffer.extend_from_slice(&message.payload);
    Ok(payload)
}

/// Reads one frame; lengths are checked first, and memory is taken as bytes arrive: to announce
/// much costs a peer nothing.
async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<LinkMessage> {
    let length = reader.read_u32_le().await?;
    let payload_length = reader.read_u32_le().await?;
    if length > MESSAGE_BYTES_MAX || payload_length > PAYLOAD_BYTES_MAX {
        return Err(refused(&format!(
            "frame of {length} + {payload_length} bytes, \
             at most {MESSAGE_BYTES_MAX} + {PAYLOAD_BYTES_MAX}"
        )));
    }
    let message = read_bytes(reader, length).await?;
    let payload = read_bytes(reader, payload_length).await?;
    let frame = LinkFrame::decode(&message[..]).map_err(io::Error::other)?;
    let kind = frame.kind.ok_or_else(|| refused("frame without a kind"))?;
    Ok(LinkMessage {
        kind,
        payload: payload.into(),
    })
}

async fn read_bytes(reader: &mut (impl AsyncRead + Unpin), length: u32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = reader
        .take(u64::from(length))
        .read_to_end(&mut bytes)
        .await?;
    if read < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
