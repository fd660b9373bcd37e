//! Accepting connections, and ending them.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::answer::Gateway;
use super::link::{Io, Link, Overdue, Patience, Wire};
use super::log::Watcher;
use super::pagecache::PageCache;
use super::{Content, Push, ServerTls};
use crate::name::Aliases;

/// How long to wait for a file descriptor to come free when there is none for the next connection.
const NO_DESCRIPTOR: Duration = Duration::from_millis(50);

/// How many manifests are taken in at a time, each of which may have 4 MiB; further clients wait.
const MANIFESTS_AT_ONCE: usize = 4;

/// Bounds of a server, all of which have a default.
#[derive(Clone)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Connections that are served at the same time; further ones wait in the kernel. 1024 by default.
    pub max_connections: usize,
    /// From the first byte of a request to the end of its headers. 10 s by default.
    pub header_timeout: Duration,
    /// How long a connection without a request stays open. 90 s by default, as long as clients in Go keep
    /// theirs.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of its answer before it is disconnected. 120 s by default: clients
    /// that unpack as they read do pause.
    pub write_timeout: Duration,
    /// The longest request head in bytes; one that is longer than what is read at once beyond that, and twice as long at most, is
    /// answered 431. 32 KiB by default, which as many ranges as are taken in one request fit into; at least 8 KiB.
    pub max_head: usize,
    /// How long answers may still take to finish once the server was told to shut down. 8 s by default.
    pub drain_timeout: Duration,
    /// Who is told how each request ended; nobody by default.
    pub watcher: Option<Watcher>,
    /// What clients are shown; without it they are spoken to in the clear, as by default.
    pub tls: Option<ServerTls>,
    /// Short names of origins, which the first part of a path may be; none by default.
    pub aliases: Aliases,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(90),
            write_timeout: Duration::from_secs(120),
            max_head: 32 << 10,
            drain_timeout: Duration::from_secs(8),
            watcher: None,
            tls: None,
            aliases: Aliases::default(),
        }
    }
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still busy when [`ServerOptions::drain_timeout`] had passed, and were cut.
    pub cut: usize,
}

/// Serves until `shutdown` is cancelled, then stops accepting, lets every answer that has begun finish within
/// [`ServerOptions::drain_timeout`], and returns.
///
/// Cancel-safe in the sense that dropping the future closes the listener and all connections at once.
pub async fn serve<C: Content + Push>(
    listener: TcpListener,
    content: Arc<C>,
    options: ServerOptions,
    shutdown: CancellationToken,
) -> Drained {
    let gateway = Arc::new(Gateway {
        content,
        cache: PageCache::new(),
        watcher: options.watcher.clone(),
        aliases: options.aliases.clone(),
        manifests: Semaphore::new(MANIFESTS_AT_ONCE),
    });
    let slots = Arc::new(Semaphore::new(options.max_connections.max(1)));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((stream, client, slot)) => {
                let gateway = Arc::clone(&gateway);
                let connection = connection(stream, client, gateway, options.clone(), shutdown.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) if out_of_descriptors(&error) => {
                tracing::warn!(%error, "no connection can be accepted for now: raise the limit of open files");
                // The listener stays readable, so without a pause this loop would spin.
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(NO_DESCRIPTOR) => {}
                }
            }
            // The connection was gone before it was accepted; the next one is not concerned.
            Err(error) => tracing::debug!(%error, "a connection could not be accepted"),
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    let cut = match tokio::time::timeout(options.drain_timeout, all).await {
        Ok(()) => 0,
        Err(_) => connections.len(),
    };
    if cut > 0 {
        tracing::warn!(connections = cut, "connections were cut because they did not finish in time");
    }
    connections.shutdown().await;
    Drained { cut }
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, client) = listener.accept().await?;
    Ok((stream, client, slot))
}

fn out_of_descriptors(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    shortages.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

async fn connection<C: Content + Push>(
    stream: TcpStream,
    client: SocketAddr,
    gateway: Arc<Gateway<C>>,
    options: ServerOptions,
    shutdown: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %client, "the connection's packets may be delayed");
    }
    let patience =
        Patience { idle: options.idle_timeout, header: options.header_timeout, write: options.write_timeout };
    let wire = Wire::new(stream, options.tls.is_some());
    let link = Link::new(Arc::clone(&wire));
    let io = match &options.tls {
        None => Io::Plain(link),
        Some(tls) => {
            let overdue = wire.overdue(patience);
            let greeted = tokio::select! {
                greeted = tls.acceptor().accept(link) => greeted,
                _ = overdue => return,
                () = shutdown.cancelled() => return,
            };
            match greeted {
                Ok(stream) => {
                    // From now on the client is waited for as any other.
                    wire.request_ends();
                    Io::Tls(Box::new(stream))
                }
                Err(error) => {
                    tracing::debug!(%client, %error, "a client did not get through the handshake");
                    return;
                }
            }
        }
    };
    let service = service_fn(|request| {
        let (gateway, wire) = (Arc::clone(&gateway), Arc::clone(&wire));
        wire.request_begins();
        async move { Ok::<_, Infallible>(gateway.answer(wire, client, request).await) }
    });
    let connection = http1::Builder::new()
        // hyper's own timeout does not tell an idle connection from a slow head.
        .header_read_timeout(None)
        .max_buf_size(options.max_head.max(8 << 10))
        .serve_connection(TokioIo::new(io), service);
    let mut connection = Box::pin(connection);
    let mut overdue = std::pin::pin!(wire.overdue(patience));
    let mut draining = false;
    let outcome = loop {
        tokio::select! {
            outcome = connection.as_mut() => break outcome,
            () = shutdown.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            overdue = overdue.as_mut() => {
                tracing::debug!(%client, ?overdue, "a connection is closed because its client does nothing");
                if overdue == Overdue::Write {
                    wire.poison();
                }
                break Ok(());
            }
        }
    };
    drop(connection);
    if let Err(error) = outcome {
        tracing::debug!(%client, %error, "a connection ended before its time");
    }
    wire.part().await;
}
