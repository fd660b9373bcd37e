use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wherry_proto::{Digest, SecretKey};

use super::api::*;
use super::*;
use crate::status::{Addresses, Report, State};

/// Long enough that only something that hangs reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers as the name of the image demands.
struct Harbour {
    /// Told when the future of a pull is dropped.
    left: mpsc::Sender<()>,
}

struct TellOnDrop(mpsc::Sender<()>);

impl Drop for TellOnDrop {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

fn digest() -> Digest {
    Digest::sha256(b"layer")
}

fn progress(bytes: u64) -> PullEvent {
    PullEvent::Progress { digest: digest(), bytes, from_peers: bytes, from_origin: 0 }
}

impl Report for Harbour {
    fn state(&self) -> State {
        State::Ready
    }

    async fn status(&self) -> NodeStatus {
        NodeStatus {
            version: "0.1.0".to_owned(),
            state: State::Ready,
            peer_id: SecretKey::from_seed([1; 32]).node(),
            network: SecretKey::from_seed([2; 32]).network(),
            site: "harbour".to_owned(),
            default_origin: "docker.io".to_owned(),
            uptime_seconds: 5,
            addresses: Addresses {
                gateway: ([127, 0, 0, 1], 1).into(),
                status: ([127, 0, 0, 1], 2).into(),
                peers: ([127, 0, 0, 1], 3).into(),
                bulk: ([127, 0, 0, 1], 4).into(),
                control: "/c".into(),
                bootstrap: Vec::new(),
            },
            store: crate::status::StoreStatus::default(),
            images: 0,
            peers: 0,
            refused: Vec::new(),
            unreached: Vec::new(),
            joined: None,
            damaged: Vec::new(),
            transfers: Vec::new(),
            wan: WanStatus::default(),
            remaining: Vec::new(),
            left_alone: Vec::new(),
            traffic: crate::status::Traffic::default(),
            errors: crate::status::ErrorCounts::default(),
        }
    }
}

impl Backend for Harbour {
    async fn pull(&self, request: PullRequest, events: Events<PullEvent>) -> Result<PullSummary, ApiError> {
        let _left = TellOnDrop(self.left.clone());
        match request.reference.as_str() {
            "missing" => {
                Err(ApiError::new(ErrorCode::NotFound, "no such image: missing").hint("spell it right"))
            }
            "endless" => {
                events.tell(progress(1)).await;
                std::future::pending().await
            }
            reference => {
                for bytes in 0..1000 {
                    events.tell(progress(bytes)).await;
                }
                Ok(PullSummary {
                    settled: false,
                    reference: reference.to_owned(),
                    digest: digest(),
                    seconds: 1.5,
                    from_peers: 999,
                    from_origin: 0,
                    present: 0,
                    asked: true,
                    unasked: None,
                    tag_age_seconds: Some(0),
                })
            }
        }
    }

    async fn cancel(&self, request: CancelRequest) -> Result<CancelSummary, ApiError> {
        match request.reference.as_str() {
            "missing" => Err(ApiError::new(ErrorCode::NotFound, "nothing of missing is on its way")),
            reference => Ok(CancelSummary { reference: reference.to_owned(), pulls: 1, blobs: Vec::new() }),
        }
    }

    async fn publish(
        &self,
        request: PublishRequest,
        _events: Events<PublishEvent>,
    ) -> Result<PublishSummary, ApiError> {
        let to = request.to.unwrap_or_default();
        Ok(PublishSummary {
            reference: request.reference,
            to,
            digest: digest(),
            sent: 1,
            present: 2,
            seconds: 0.5,
        })
    }

    async fn check(
        &self,
        request: CheckRequest,
        events: Events<CheckEvent>,
    ) -> Result<CheckSummary, ApiError> {
        events.tell(CheckEvent::Damaged { digest: digest(), size: 5 }).await;
        let damaged = DamagedBlob { digest: digest(), size: 5, gone: false, images: request.references };
        Ok(CheckSummary {
            blobs: 1,
            bytes: 5,
            seconds: 0.5,
            damaged: vec![damaged],
            missing: Vec::new(),
            unread: Vec::new(),
        })
    }

    async fn preload(
        &self,
        request: PreloadRequest,
        events: Events<PreloadEvent>,
    ) -> Result<PreloadSummary, ApiError> {
        let nodes = request.nodes.unwrap_or_default();
        for (node, reference) in nodes.iter().zip(&request.references) {
            let (node, reference) = (node.clone(), reference.clone());
            let (step, why) = (PreloadStep::Failed, Some("no such image".to_owned()));
            let progress = PreloadProgress { node, reference, bytes: 1, of_bytes: 2, step, why };
            events.tell(PreloadEvent::Progress(progress)).await;
        }
        Ok(PreloadSummary { nodes: nodes.len(), failed: nodes.len(), images: 1, seconds: 0.5 })
    }

    async fn images(&self) -> Result<Vec<ImageSummary>, ApiError> {
        Ok(Vec::new())
    }

    async fn inspect(&self, request: InspectRequest) -> Result<ImageDetails, ApiError> {
        let InspectRequest { reference, platform } = request;
        let platform = platform.unwrap_or_else(|| "any".to_owned());
        Err(ApiError::new(ErrorCode::NotFound, format!("no image {reference} for {platform}")))
    }

    async fn why(&self, request: InspectRequest) -> Result<WhyImage, ApiError> {
        Err(ApiError::new(ErrorCode::Unavailable, format!("no word of {}", request.reference)))
    }

    async fn remove(&self, request: RemoveRequest) -> Result<RemoveSummary, ApiError> {
        let image = |reference| RemovedImage {
            reference,
            digest: digest(),
            blobs: 1,
            partial: 0,
            bytes: 2,
            shared: 3,
            pinned: false,
        };
        Ok(RemoveSummary { removed: request.references.into_iter().map(image).collect() })
    }

    async fn pin(&self, request: PinRequest) -> Result<PinSummary, ApiError> {
        let PinRequest { reference, pinned } = request;
        Ok(PinSummary { reference, pinned, blobs: 2 })
    }

    async fn exported(&self, reference: &str) -> Result<String, ApiError> {
        Ok(format!("r.example/{reference}"))
    }

    async fn import(
        &self,
        _name: Option<String>,
        mut archive: Archive,
        events: Events<ImportEvent>,
    ) -> Result<ImportSummary, ApiError> {
        let mut first = [0; 4];
        let read = archive.read_exact(&mut first).await;
        read.map_err(|error| ApiError::new(ErrorCode::BadRequest, error.to_string()))?;
        if &first == b"evil" {
            return Err(ApiError::new(ErrorCode::BadRequest, "the archive is damaged"));
        }
        let mut bytes = first.to_vec();
        let read = archive.read_to_end(&mut bytes).await;
        read.map_err(|error| ApiError::new(ErrorCode::BadRequest, error.to_string()))?;
        let (digest, size) = (Digest::sha256(&bytes), bytes.len() as u64);
        events.tell(ImportEvent::Blob { digest, size, present: false }).await;
        Ok(ImportSummary { images: vec![ImportedImage { reference: None, tag: None, digest, size }] })
    }

    async fn blob(&self, request: BlobRequest, out: DuplexStream) -> Result<(), ApiError> {
        let known = (request.digest == digest()).then_some(request.reference.as_str());
        self.export(known.unwrap_or("missing"), out).await
    }

    async fn export(&self, reference: &str, mut out: DuplexStream) -> Result<(), ApiError> {
        if reference == "missing" {
            return Err(ApiError::new(ErrorCode::NotFound, "no such image: missing"));
        }
        for _ in 0..100 {
            // The client of a test that goes away is no failure of the test.
            if out.write_all(&[7; 10_000]).await.is_err() {
                break;
            }
        }
        match reference {
            "torn" => Err(ApiError::new(ErrorCode::Internal, "the disk says né")),
            _ => Ok(()),
        }
    }

    async fn peers(&self) -> Result<Vec<PeerInfo>, ApiError> {
        Ok(Vec::new())
    }

    async fn wan(&self) -> Result<WanStatus, ApiError> {
        Ok(WanStatus { spent: 7, ..WanStatus::default() })
    }

    async fn pause(&self, request: WanRequest) -> Result<WanSummary, ApiError> {
        let limited = Limited { by: Limit::Pause, since: 5, until: None };
        let status = WanStatus { limited: request.paused.then_some(limited), ..WanStatus::default() };
        Ok(WanSummary { site: "harbour".to_owned(), neighbours: 2, agree: 1, status })
    }
}

struct Running {
    folder: TempDir,
    client: Client,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
    left: mpsc::Receiver<()>,
}

fn start() -> Running {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let (sender, left) = mpsc::channel(8);
    let shutdown = CancellationToken::new();
    let socket = bind(&path).unwrap();
    let server = tokio::spawn(serve(socket, Arc::new(Harbour { left: sender }), shutdown.clone()));
    Running { folder, client: Client::new(path), shutdown, server, left }
}

async fn pull(running: &Running, reference: &str) -> Progress<PullEvent, PullSummary> {
    running
        .client
        .pull(&PullRequest {
            reference: reference.to_owned(),
            platform: None,
            refresh: false,
            wait_seconds: None,
        })
        .await
        .unwrap()
}

fn refused(error: ClientError) -> ApiError {
    match error {
        ClientError::Refused(error) => error,
        other => panic!("{other}"),
    }
}

async fn raw(running: &Running, request: &str) -> Vec<u8> {
    let mut stream = UnixStream::connect(&running.client.sockets()[0]).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn a_pull_tells_everything_in_order_and_then_how_it_ended() {
    let running = start();
    let mut lines = pull(&running, "alpine").await;
    for bytes in 0..1000 {
        assert_eq!(lines.next().await.unwrap(), Step::Event(progress(bytes)));
    }
    let Step::Done(summary) = lines.next().await.unwrap() else { panic!("no end") };
    assert_eq!((summary.reference.as_str(), summary.from_peers), ("alpine", 999));
}

#[tokio::test]
async fn a_failure_arrives_with_its_code_message_and_hint() {
    let running = start();
    let error = refused(pull(&running, "missing").await.next().await.unwrap_err());
    assert_eq!(error.code, ErrorCode::NotFound);
    assert_eq!(error.to_string(), "no such image: missing");
    assert_eq!(error.hint.as_deref(), Some("spell it right"));
    let inspect = async |platform: Option<&str>| {
        let (reference, platform) = ("a/b:1&x=y ü".to_owned(), platform.map(str::to_owned));
        let error = running.client.inspect(&InspectRequest { reference, platform }).await.unwrap_err();
        refused(error).message
    };
    assert_eq!(inspect(None).await, "no image a/b:1&x=y ü for any");
    assert_eq!(inspect(Some("linux/arm/v7")).await, "no image a/b:1&x=y ü for linux/arm/v7");
}

#[tokio::test]
async fn what_is_cancelled_is_told_and_so_is_what_is_not_there() {
    let running = start();
    let cancel = async |reference: &str| {
        running.client.cancel(&CancelRequest { reference: reference.to_owned() }).await
    };
    assert_eq!(cancel("a/b:1").await.unwrap().reference, "a/b:1");
    assert_eq!(refused(cancel("missing").await.unwrap_err()).code, ErrorCode::NotFound);
}

#[tokio::test]
async fn the_work_for_a_client_that_leaves_is_dropped() {
    let mut running = start();
    let mut lines = pull(&running, "endless").await;
    assert_eq!(lines.next().await.unwrap(), Step::Event(progress(1)));
    drop(lines);
    tokio::time::timeout(PATIENCE, running.left.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stopping_node_says_so_to_those_who_wait_and_frees_its_socket() {
    let running = start();
    let mut lines = pull(&running, "endless").await;
    lines.next().await.unwrap();
    running.shutdown.cancel();
    assert_eq!(refused(lines.next().await.unwrap_err()).code, ErrorCode::Stopping);
    tokio::time::timeout(PATIENCE, running.server).await.unwrap().unwrap();
    assert!(!running.client.sockets()[0].exists());
    assert_eq!(std::fs::read_dir(running.folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn an_archive_reaches_the_node_byte_for_byte() {
    let running = start();
    let bytes: Vec<u8> = (0..3_000_000u32).flat_map(|i| i.to_le_bytes()).collect();
    let digest = Digest::sha256(&bytes);
    let size = bytes.len() as u64;
    let mut lines = running.client.import(None, std::io::Cursor::new(bytes)).await.unwrap();
    assert_eq!(lines.next().await.unwrap(), Step::Event(ImportEvent::Blob { digest, size, present: false }));
    let Step::Done(summary) = lines.next().await.unwrap() else { panic!("no end") };
    assert_eq!(summary.images[0].digest, digest);
}

#[tokio::test]
async fn a_refused_archive_is_refused_at_once_and_the_reason_gets_through() {
    let running = start();
    let mut bytes = b"evil".to_vec();
    bytes.resize(50_000_000, 0);
    let mut lines = running.client.import(None, std::io::Cursor::new(bytes)).await.unwrap();
    let error = refused(lines.next().await.unwrap_err());
    assert_eq!(error.message, "the archive is damaged");
}

#[tokio::test]
async fn a_client_that_cannot_read_its_archive_any_further_leaves_no_image() {
    struct Breaks(bool);
    impl tokio::io::AsyncRead for Breaks {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            out: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            if std::mem::replace(&mut self.0, true) {
                return std::task::Poll::Ready(Err(std::io::Error::other("the stick was pulled")));
            }
            out.put_slice(b"good");
            std::task::Poll::Ready(Ok(()))
        }
    }
    let running = start();
    // Whether the answer's head comes first is a matter of luck; that nothing is done is not.
    match running.client.import(None, Breaks(false)).await {
        Ok(mut lines) => assert!(lines.next().await.is_err()),
        Err(error) => assert!(matches!(error, ClientError::Local(_) | ClientError::Lost), "{error}"),
    }
}

#[tokio::test]
async fn an_export_arrives_whole_or_with_the_reason_why_not() {
    let running = start();
    let mut out = Vec::new();
    assert_eq!(
        running.client.export("fine", &mut out).await.unwrap(),
        ("r.example/fine".to_owned(), 1_000_000)
    );
    assert!(out.len() == 1_000_000 && out.iter().all(|byte| *byte == 7));

    let mut out = Vec::new();
    let error = refused(running.client.export("missing", &mut out).await.unwrap_err());
    assert_eq!((error.code, out.len()), (ErrorCode::NotFound, 0));

    let mut out = Vec::new();
    let error = refused(running.client.export("torn", &mut out).await.unwrap_err());
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::Internal, "the disk says n?"));
}

#[tokio::test]
async fn a_part_of_an_image_arrives_whole_or_with_the_reason_why_not() {
    let running = start();
    let request = |name: &str, digest| BlobRequest {
        reference: name.to_owned(),
        platform: Some("a/b".to_owned()),
        digest,
    };
    let mut carried = running.client.blob(&request("fine", digest())).await.unwrap();
    let mut bytes = 0;
    while let Some(piece) = carried.next().await.unwrap() {
        bytes += piece.len();
    }
    assert_eq!((bytes, carried.next().await.unwrap()), (1_000_000, None));

    let other = running.client.blob(&request("fine", Digest::sha256(b"other"))).await;
    assert_eq!(refused(other.err().unwrap()).code, ErrorCode::NotFound);

    let mut torn = running.client.blob(&request("torn", digest())).await.unwrap();
    let error = loop {
        match torn.next().await {
            Ok(piece) => assert!(piece.is_some(), "what is torn has no end"),
            Err(error) => break refused(error),
        }
    };
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::Internal, "the disk says n?"));
}

#[tokio::test]
async fn a_torn_export_looks_torn_to_clients_that_read_no_trailers() {
    let running = start();
    let request = |reference: &str| {
        format!("GET /v1/export?reference={reference} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    };
    let whole = raw(&running, &request("fine")).await;
    assert!(whole.ends_with(b"0\r\n\r\n"));
    let torn = raw(&running, &request("torn")).await;
    assert!(torn.starts_with(b"HTTP/1.1 200") && !torn.ends_with(b"0\r\n\r\n"));
}

#[tokio::test]
async fn a_preload_tells_how_each_node_does() {
    let running = start();
    let request = PreloadRequest {
        references: vec!["app:1".to_owned()],
        platform: None,
        nodes: Some(vec!["quay".to_owned()]),
    };
    let mut lines = running.client.preload(&request).await.unwrap();
    let Step::Event(PreloadEvent::Progress(told)) = lines.next().await.unwrap() else { panic!("no event") };
    assert_eq!((told.node.as_str(), told.reference.as_str()), ("quay", "app:1"));
    assert_eq!((told.step, told.why.as_deref()), (PreloadStep::Failed, Some("no such image")));
    let Step::Done(summary) = lines.next().await.unwrap() else { panic!("not done") };
    assert_eq!((summary.nodes, summary.failed), (1, 1));
}

#[tokio::test]
async fn a_check_tells_what_it_finds_as_it_goes() {
    let running = start();
    let request = CheckRequest { references: vec!["app".to_owned()] };
    let mut lines = running.client.check(&request).await.unwrap();
    let found = lines.next().await.unwrap();
    assert_eq!(found, Step::Event(CheckEvent::Damaged { digest: digest(), size: 5 }));
    let Step::Done(summary) = lines.next().await.unwrap() else { panic!("not done") };
    assert_eq!(summary.damaged[0].images, ["app"]);
}

#[tokio::test]
async fn requests_that_make_no_sense_get_an_error_and_harm_nothing() {
    let running = start();
    let post = |body: &str| {
        format!(
            "POST /v1/pull HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let long = post(&format!("{{\"reference\":\"{}\"}}", "a".repeat(MAX_REQUEST)));
    for request in [
        post("{"),
        post("{}"),
        long,
        "GET /v1/inspect HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(),
        "GET /v1/images/../../etc HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(),
    ] {
        let answer = String::from_utf8(raw(&running, &request).await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        assert!(serde_json::from_str::<ApiError>(body).is_ok(), "{body}");
    }
    assert_eq!(running.client.status().await.unwrap().site, "harbour");
}

#[tokio::test]
async fn without_a_node_the_client_says_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let error = Client::new(&path).status().await.unwrap_err();
    assert!(matches!(error, ClientError::NoNode(_)), "{error}");
    assert!(error.hint().unwrap().contains("start one with 'wherry up'"));
    // What a killed node leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = Client::new(&path).status().await.unwrap_err();
    assert!(matches!(error, ClientError::NoNode(_)), "{error}");
}

#[tokio::test]
async fn the_first_socket_at_which_a_node_answers_is_used_and_if_none_does_all_are_named() {
    let running = start();
    let (none, dead) = (running.folder.path().join("none.sock"), running.folder.path().join("dead.sock"));
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let there = running.client.sockets()[0].clone();
    let client = Client::first_of(vec![none.clone(), dead.clone(), there]);
    assert_eq!(client.status().await.unwrap().site, "harbour");
    let error = Client::first_of(vec![none.clone(), dead.clone()]).status().await.unwrap_err().to_string();
    assert!(error.contains(&format!("{} or {}", none.display(), dead.display())), "{error}");
}

#[tokio::test]
async fn an_answer_that_stops_in_the_middle_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let (told, heard) = oneshot::channel::<()>();
    tokio::spawn(async move {
        for body in ["5\r\n{\"eve\r\n", "10\r\n{\"event\":\"done\"\r\n", "3\r\nabc\r\n0\r\n\r\n"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        }
        let _ = heard.await;
    });
    let client = Client::new(&path);
    for _ in 0..2 {
        let mut lines = client
            .pull(&PullRequest {
                reference: "x".to_owned(),
                platform: None,
                refresh: false,
                wait_seconds: None,
            })
            .await
            .unwrap();
        let error = lines.next().await.unwrap_err();
        assert!(matches!(error, ClientError::Lost), "{error}");
    }
    // A chunked body that ends properly, but without the word that it is complete.
    let error = client.export("x", &mut Vec::new()).await.unwrap_err();
    assert!(matches!(error, ClientError::Lost), "{error}");
    drop(told);
}

#[tokio::test]
async fn the_socket_is_for_its_user_alone_and_only_a_dead_node_loses_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/control.sock");
    let first = bind(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(bind(&path), Err(BindError::Taken(_))));
    assert_eq!(first.path(), path);
    drop(first);
    assert!(!path.exists());

    // What a killed node leaves behind is replaced, and not removed by whoever came before.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let second = bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let third = bind(&path).unwrap();
    drop(second);
    assert!(path.exists());
    drop(third);

    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(bind(&path), Err(BindError::NoSocket(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let long = folder.path().join("x".repeat(200));
    assert!(matches!(bind(&long), Err(BindError::TooLong(_))));
    let under_a_file = bind(&path.join("control.sock"));
    assert!(matches!(under_a_file, Err(BindError::Io { .. })), "{under_a_file:?}");
    let error = Client::new(Path::new("/dev/null")).status().await.unwrap_err();
    assert!(matches!(error, ClientError::NoNode(_)), "{error}");
}

#[tokio::test]
async fn the_site_is_paused_and_resumed_and_its_links_are_told_of() {
    let running = start();
    assert_eq!(running.client.wan().await.unwrap().spent, 7);
    let paused = running.client.pause(&WanRequest { paused: true }).await.unwrap();
    assert_eq!(paused.status.limited.unwrap().by, Limit::Pause);
    assert_eq!((paused.neighbours, paused.agree), (2, 1));
    let resumed = running.client.pause(&WanRequest { paused: false }).await.unwrap();
    assert_eq!(resumed.status.limited, None);
}
