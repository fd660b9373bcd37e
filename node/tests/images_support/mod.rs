//! A node's images over a real store and a real origin.

#![allow(dead_code, unreachable_pub, reason = "each test uses some of it")]

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wherry_gateway::origin::{Credential, OriginSettings, Origins};
use wherry_gateway::server::{
    Ask, BlobReader, Body, Content, ManifestAnswer, Push, Refusal, RefusalKind, ServerOptions, Want, serve,
};
use wherry_gateway::{Descriptor, Host, Manifest, Names, Reference, TagOrDigest};
use wherry_node::images::push::{Keeper, PushSettings};
use wherry_node::images::{
    Access, AccessRules, ImageError, Images, ImagesParts, PullEvents, TagRule, TagRules,
};
use wherry_node::limits::Limits;
use wherry_node::status::Metrics;
use wherry_node::store::{Store, StoreSettings};
use wherry_node::transfer::{Progress, Signer, Transfers};
use wherry_proto::{Certificate, Digest, NetworkId, NodeId, Roles, SecretKey, TagRecord};

pub use neighbours::*;

mod neighbours;

pub const NOW: u64 = 1_700_000_000;
pub const DAY: u64 = 86_400;
pub const TAG_TTL: Duration = Duration::from_secs(60);
/// A repository whose blobs the origin gives to nobody who only asks for them.
pub const FORBIDDEN: &str = "forbidden";
/// How many connections may wait until the origin takes them.
const BACKLOG: u32 = 128;
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn operator() -> SecretKey {
    SecretKey::from_seed([1; 32])
}

fn own_key() -> SecretKey {
    SecretKey::from_seed([9; 32])
}

fn certificate(node: NodeId) -> Certificate {
    until_time(node, u64::MAX)
}

fn until_time(node: NodeId, expires: u64) -> Certificate {
    Certificate::sign(&operator(), node, Roles::MEMBER | Roles::RESOLVER, 1, expires)
}

pub fn network() -> NetworkId {
    operator().network()
}

/// Nobody watches a pull.
pub struct Nobody;

impl PullEvents for Nobody {
    fn resolved(&self, _: &Manifest) {}
    fn started(&self, _: &Descriptor, _: bool, _: u64) {}
    fn progress(&self, _: &Digest, _: Progress) {}
    fn done(&self, _: &Digest, _: bool, _: Progress) {}
}

/// Waits until something is so.
pub async fn until(mut so: impl FnMut() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
}

/// A document or blob, with what it refers to.
#[derive(Clone)]
pub struct Image {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
    pub blobs: Vec<(Digest, Bytes)>,
}

impl Image {
    pub fn parsed(&self) -> Manifest {
        Manifest::parse(self.bytes.clone(), Some(&self.media_type)).unwrap()
    }

    pub fn layer(&self) -> Digest {
        self.blobs[1].0
    }
}

/// What the origin has, by repository.
#[derive(Default)]
pub struct Registry {
    tags: Mutex<HashMap<(String, String), Image>>,
    documents: Mutex<HashMap<(String, Digest), Image>>,
    blobs: Mutex<HashMap<(String, Digest), Bytes>>,
    /// How many manifests were asked for.
    pub asked: AtomicUsize,
    /// Whether it keeps back what it has found to answer about manifests.
    pub holding: watch::Sender<bool>,
    stop: CancellationToken,
}

impl Registry {
    pub fn tag(&self, repository: &str, tag: &str, image: &Image) {
        self.tags.lock().unwrap().insert((repository.to_owned(), tag.to_owned()), image.clone());
        self.add(repository, image);
    }

    pub fn add(&self, repository: &str, image: &Image) {
        let repository = repository.to_owned();
        self.documents.lock().unwrap().insert((repository.clone(), image.digest), image.clone());
        for (digest, bytes) in &image.blobs {
            self.blobs.lock().unwrap().insert((repository.clone(), *digest), bytes.clone());
        }
    }

    /// Takes no connection any more.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

pub struct Reading(Bytes);

impl BlobReader for Reading {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    async fn read(&self, range: Range<u64>) -> Result<Body, Refusal> {
        Ok(Body::Bytes(self.0.slice(range.start as usize..range.end as usize)))
    }
}

struct Shared(Arc<Registry>);

impl Push for Shared {}

impl Content for Shared {
    type Blob = Reading;

    async fn manifest(&self, ask: Ask, reference: TagOrDigest, _: Want) -> Result<ManifestAnswer, Refusal> {
        let repository = ask.repository.to_string();
        let found = match &reference {
            TagOrDigest::Tag(tag) => self.0.tags.lock().unwrap().get(&(repository, tag.to_string())).cloned(),
            TagOrDigest::Digest(digest) => {
                self.0.documents.lock().unwrap().get(&(repository, *digest)).cloned()
            }
        };
        // Counted once it is found: what happens from then on changes nothing of this answer.
        self.0.asked.fetch_add(1, Ordering::Relaxed);
        let _ = self.0.holding.subscribe().wait_for(|holding| !*holding).await;
        let image = found.ok_or_else(|| Refusal::new(RefusalKind::ManifestUnknown, "no such manifest"))?;
        Ok(ManifestAnswer::new(image.bytes, image.media_type, image.digest))
    }

    async fn blob(&self, ask: Ask, digest: Digest, _: Want) -> Result<Reading, Refusal> {
        if ask.repository.to_string() == FORBIDDEN {
            return Err(Refusal::new(RefusalKind::Denied, "not for everybody"));
        }
        let found = self.0.blobs.lock().unwrap().get(&(ask.repository.to_string(), digest)).cloned();
        found.map(Reading).ok_or_else(|| Refusal::new(RefusalKind::BlobUnknown, "no such blob"))
    }

    async fn tags(&self, _: Ask) -> Result<Vec<String>, Refusal> {
        Ok(Vec::new())
    }
}

/// An origin, and nodes that know it.
pub struct Lab {
    pub origin: Arc<Registry>,
    pub host: Host,
    clock: Arc<AtomicU64>,
    rules: Mutex<Vec<TagRule>>,
    access: Mutex<Option<Access>>,
    // Has the origin's port, so that nobody else gets it while the origin is stopped.
    port: Mutex<Option<TcpSocket>>,
}

/// A node without network: its store, and neighbours that a test speaks for.
pub struct Node {
    pub images: Images,
    pub store: Store,
    pub site: Arc<Said>,
    pub peers: Arc<Holders>,
    dir: TempDir,
}

impl Lab {
    pub async fn new() -> Self {
        let [first, second] = [(); 2].map(|()| TcpSocket::new_v4().unwrap());
        for socket in [&first, &second] {
            socket.set_reuseaddr(true).unwrap();
        }
        first.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        // Two may be bound while one listens, if both were bound before.
        second.bind(address).unwrap();
        let origin = Arc::new(Registry::default());
        let (listener, stop) = (first.listen(BACKLOG).unwrap(), origin.stop.clone());
        tokio::spawn(serve(listener, Arc::new(Shared(origin.clone())), ServerOptions::default(), stop));
        let port = Mutex::new(Some(second));
        Self { origin, port, ..Self::at(address.to_string().parse().unwrap()) }
    }

    /// Starts the origin where it was, once, when it listens there no more.
    pub fn origin_again(&self) {
        let listener = self.port.lock().unwrap().take().unwrap().listen(BACKLOG).unwrap();
        let (shared, stop) = (Arc::new(Shared(self.origin.clone())), CancellationToken::new());
        tokio::spawn(serve(listener, shared, ServerOptions::default(), stop));
    }

    /// The same with another origin.
    pub fn at(host: Host) -> Self {
        let clock = Arc::new(AtomicU64::new(NOW));
        let (rules, access) = (Mutex::default(), Mutex::default());
        Self { origin: Arc::default(), host, clock, rules, access, port: Mutex::default() }
    }

    /// Nodes that are made from now on have these rules for tags.
    pub fn rules(&self, rules: &[&str]) {
        *self.rules.lock().unwrap() = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    }

    /// Nodes that are made from now on let those read the origin's private repositories.
    pub fn access(&self, access: Access) {
        *self.access.lock().unwrap() = Some(access);
    }

    /// Lets time pass for every node.
    pub fn clock_to(&self, time: u64) {
        self.clock.store(time, Ordering::Relaxed);
    }

    pub fn reference(&self, text: &str) -> Reference {
        format!("{}/{text}", self.host).parse().unwrap()
    }

    /// An image of one layer.
    pub fn image(&self, seed: &str) -> Image {
        let config = Bytes::from(
            serde_json::json!({ "os": "linux", "architecture": "amd64", "seed": seed }).to_string(),
        );
        let layer = Bytes::from(seed.repeat(1000));
        let blob = |bytes: &Bytes| (Digest::sha256(bytes), bytes.clone());
        let descriptor = |media_type: &str, bytes: &Bytes| serde_json::json!({ "mediaType": media_type, "digest": Digest::sha256(bytes), "size": bytes.len() });
        let document = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let bytes = Bytes::from(document.to_string());
        Image {
            digest: Digest::sha256(&bytes),
            media_type: OCI_MANIFEST.to_owned(),
            bytes,
            blobs: vec![blob(&config), blob(&layer)],
        }
    }

    /// An index of images for these platforms.
    pub fn index(&self, images: &[(&Image, &str)]) -> Image {
        let entry = |(image, platform): &(&Image, &str)| {
            let mut parts = platform.split('/');
            let (os, architecture) = (parts.next(), parts.next());
            let mut entry = serde_json::json!({
                "mediaType": image.media_type, "digest": image.digest, "size": image.bytes.len(),
                "platform": { "os": os, "architecture": architecture },
            });
            if let Some(variant) = parts.next() {
                entry["platform"]["variant"] = variant.into();
            }
            entry
        };
        let manifests: Vec<_> = images.iter().map(entry).collect();
        let document =
            serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        let bytes = Bytes::from(document.to_string());
        Image { digest: Digest::sha256(&bytes), media_type: OCI_INDEX.to_owned(), bytes, blobs: Vec::new() }
    }

    pub fn node(&self) -> Node {
        self.node_with(None)
    }

    /// A node that has credentials for the origin.
    pub fn node_with_credentials(&self) -> Node {
        let password = Credential::Password { username: "user".to_owned(), password: "password".to_owned() };
        self.node_of(None, vec![(self.host.clone(), password)])
    }

    /// A node whose store may take so many bytes.
    pub fn node_with(&self, budget: Option<u64>) -> Node {
        self.node_of(budget, Vec::new())
    }

    fn node_of(&self, budget: Option<u64>, credentials: Vec<(Host, Credential)>) -> Node {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path(), StoreSettings { budget }).unwrap();
        let mut settings = OriginSettings::default();
        settings.insecure.push(self.host.clone());
        settings.attempts = 1;
        settings.credentials.explicit = credentials;
        let origins = Origins::new(settings).unwrap();
        let metrics = Metrics::default();
        let (peers, site) = (Arc::new(Holders::default()), Arc::new(Said::default()));
        let key = own_key();
        let transfers = Transfers::new(
            store.clone(),
            peers.clone(),
            Arc::new(origins.clone()),
            metrics.clone(),
            Limits::none(key.node()),
            Signer { key: key.clone(), certificate: certificate(key.node()) },
            CancellationToken::new(),
        );
        let images = Images::new(ImagesParts {
            store: store.clone(),
            transfers,
            peers: peers.clone(),
            site: site.clone(),
            origins,
            metrics,
            certificate: certificate(key.node()),
            key,
            names: Names { default_origin: self.host.clone(), ..Names::default() },
            tags: TagRules { rules: self.rules.lock().unwrap().clone(), ttl: TAG_TTL, ..TagRules::default() },
            clock: Arc::new({
                let clock = self.clock.clone();
                move || clock.load(Ordering::Relaxed)
            }),
            access: AccessRules {
                of: self.access.lock().unwrap().iter().map(|access| (self.host.clone(), *access)).collect(),
                ..AccessRules::default()
            },
            served: Arc::new(|_, _| {}),
            push: PushSettings::default(),
            keeper: Arc::new(KeepsNothing),
        })
        .unwrap();
        Node { images, store, site, peers, dir }
    }
}

/// Nothing makes room in these tests for what was pushed.
struct KeepsNothing;

impl Keeper for KeepsNothing {
    fn keep(&self, _name: Reference, _digest: Digest) -> BoxFuture<'_, Result<(), ImageError>> {
        async { Ok(()) }.boxed()
    }

    fn spread(&self, _name: Reference, _digest: Digest) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn let_go(&self, _name: Reference) -> BoxFuture<'_, Result<(), ImageError>> {
        async { Ok(()) }.boxed()
    }
}

impl Node {
    /// A neighbour tells what it has just learned of a tag.
    pub fn told(&self, record: &TagRecord) -> bool {
        self.images.told(&record.signer(), record).unwrap()
    }

    /// A disk flips a bit of a blob.
    pub fn flip(&self, digest: &Digest) {
        // Nothing is still to be done with the file.
        self.store.sync().unwrap();
        let hex = digest.hex();
        let path = self.dir.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 1;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// Puts an image into the store; nothing is known of its name.
    pub fn put(&self, image: &Image) {
        self.store.put(&image.digest, &image.bytes).unwrap();
        for (digest, bytes) in &image.blobs {
            self.store.put(digest, bytes).unwrap();
        }
    }
}
