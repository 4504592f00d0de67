//! The app behind the gateway: a small real server that knows nothing of Gaitway and remembers
//! every request head it was sent.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::protocol::Role;

pub const PAGE: &str = "<!doctype html><html><head><meta charset=\"utf-8\"><title>Shop</title></head><body><h1>Shop</h1></body></html>";

pub struct App {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl App {
    pub async fn start() -> App {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let log = heads.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, log.clone()));
            }
        });
        App { address, heads }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The request heads that reached the app, as bytes on the wire.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, log: Arc<Mutex<Vec<String>>>) {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read_buf(&mut buffer).await {
                Ok(count) if count > 0 => {}
                _ => return,
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        log.lock().unwrap().push(head.clone());
        let path = head.split(' ').nth(1).unwrap_or("/").to_owned();
        if !answer(&mut stream, &mut buffer, &head, &path).await {
            return;
        }
    }
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Answers one request; false ends the connection.
async fn answer(stream: &mut TcpStream, rest: &mut Vec<u8>, head: &str, path: &str) -> bool {
    let length: usize = header(head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    if path == "/upload" {
        let chunked = header(head, "transfer-encoding").is_some();
        let received =
            if chunked { drain_chunked(stream, rest).await } else { drain(stream, rest, length).await };
        return reply(stream, "text/plain", "", received.to_string().as_bytes()).await;
    }
    drain(stream, rest, length).await;
    match path.split('?').next().unwrap_or_default() {
        "/page" if head.starts_with("HEAD") => {
            let text = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n",
                PAGE.len()
            );
            stream.write_all(text.as_bytes()).await.is_ok()
        }
        "/page" => reply(stream, "text/html", "ETag: \"v1\"\r\n", PAGE.as_bytes()).await,
        "/json" => reply(stream, "application/json", "", b"{\"ok\":true}").await,
        "/endless" => endless(stream).await,
        "/events" => events(stream).await,
        "/slow" => {
            tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
            reply(stream, "text/plain", "", b"late").await
        }
        "/ws" => {
            web_socket(stream, head).await;
            false
        }
        "/broken" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
            false
        }
        _ => reply(stream, "text/plain", "", b"app").await,
    }
}

async fn reply(stream: &mut TcpStream, content_type: &str, more: &str, body: &[u8]) -> bool {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{more}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.is_ok() && stream.write_all(body).await.is_ok()
}

async fn drain(stream: &mut TcpStream, rest: &mut Vec<u8>, length: usize) -> usize {
    let mut left = length.saturating_sub(rest.len());
    rest.drain(..length.min(rest.len()));
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let want = left.min(buffer.len());
        match stream.read(&mut buffer[..want]).await {
            Ok(count) if count > 0 => left -= count,
            _ => return length - left,
        }
    }
    length
}

async fn drain_chunked(stream: &mut TcpStream, rest: &mut Vec<u8>) -> usize {
    let mut total = 0;
    loop {
        let line_end = loop {
            if let Some(at) = rest.windows(2).position(|window| window == b"\r\n") {
                break at;
            }
            if !matches!(stream.read_buf(rest).await, Ok(count) if count > 0) {
                return total;
            }
        };
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line_end]).unwrap(), 16).unwrap();
        rest.drain(..line_end + 2);
        drain(stream, rest, size + 2).await;
        total += size;
        if size == 0 {
            return total;
        }
    }
}

/// Five events, each sent only after the one before was flushed.
async fn events(stream: &mut TcpStream) -> bool {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    if stream.write_all(head.as_bytes()).await.is_err() {
        return false;
    }
    for number in 0.. {
        let data = format!("data: {number}\n\n");
        if stream.write_all(format!("{:x}\r\n{data}\r\n", data.len()).as_bytes()).await.is_err() {
            return false;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    true
}

/// HTML without an end, for memory and for cutting.
async fn endless(stream: &mut TcpStream) -> bool {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n";
    if stream.write_all(head.as_bytes()).await.is_err() {
        return false;
    }
    let filling = "<p>endless</p>".repeat(4096);
    let chunk = Bytes::from(format!("{:x}\r\n{filling}\r\n", filling.len()));
    while stream.write_all(&chunk).await.is_ok() {}
    false
}

/// Echoes, and sends `tick` by itself every 50 ms.
async fn web_socket(stream: &mut TcpStream, head: &str) {
    let key = header(head, "sec-websocket-key").unwrap_or_default();
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    let switching = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    if stream.write_all(switching.as_bytes()).await.is_err() {
        return;
    }
    let mut socket = tokio_tungstenite::WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    while let Some(Ok(message)) = socket.next().await {
        if message.is_close() || socket.send(message).await.is_err() {
            return;
        }
    }
}
