//! Having nodes bring images to themselves, and watching how they do.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep};
use wherry_proto::{NodeId, PreloadRefusal, PreloadState, Preloading, Text, WantedImage};

use super::Node;
use super::bring::MAX_PRELOADS;
use crate::control::Events;
use crate::control::api::{
    ApiError, ErrorCode, PreloadEvent, PreloadProgress, PreloadRequest, PreloadStep, PreloadSummary,
};
use crate::swarm::{LinkClass, Neighbour};

/// How often a node is asked how an image comes.
const POLL_TIME: Duration = Duration::from_secs(1);

/// The first time it is asked sooner: an image that is there is seen at once.
const FIRST_POLL: Duration = Duration::from_millis(100);

/// How long a node may be away, or silent, before it is given up.
pub const AWAY_TIME: Duration = Duration::from_secs(15);

/// How often a node is asked anew that does not know of the image any more, since it was started again.
const MAX_BEGUN: usize = 3;

/// How many characters of a peer id's end are enough to mean a node, if no other one's end alike.
pub const LEAST_ID_END: usize = 6;

/// One of those that are to have the images.
pub(super) enum Target {
    Here,
    There(NodeId),
    /// Nobody of this name is connected: why not.
    Nobody(String),
}

impl Node {
    /// Has all chosen nodes bring all images, at the same time, so that each blob comes to their site once.
    pub(super) async fn preload_images(
        &self,
        request: PreloadRequest,
        events: Events<PreloadEvent>,
    ) -> Result<PreloadSummary, ApiError> {
        let begun = Instant::now();
        let images = self.wanted_images(&request)?;
        self.swarm.settled().await;
        let targets = self.targets(request.nodes.as_deref());
        let work = targets.iter().flat_map(|(name, target)| {
            let events = &events;
            images.iter().map(move |image| async move {
                let mut told = Told { node: name, image, events, last: None };
                told.tell(&Preloading { here: 0, bytes: 0, state: PreloadState::Running });
                let done = self.bring_to(target, image, &mut |now| told.tell(now)).await;
                told.end(&done).await;
                (name, done.is_ok())
            })
        });
        // As many as there are neighbours and images, both of which are bounded.
        let outcomes = join_all(work).await;
        let failed: BTreeSet<_> = outcomes.iter().filter(|(_, done)| !done).map(|(name, _)| name).collect();
        Ok(PreloadSummary {
            nodes: targets.len(),
            failed: failed.len(),
            images: images.len(),
            seconds: begun.elapsed().as_secs_f64(),
        })
    }

    fn wanted_images(&self, request: &PreloadRequest) -> Result<Vec<WantedImage>, ApiError> {
        let bad = |why: String| ApiError::new(ErrorCode::BadRequest, why);
        let platform = super::backend::platform(request.platform.as_deref())?;
        let platform = platform.map(|it| it.to_string().parse()).transpose();
        let platform: Option<Text<_>> =
            platform.map_err(|error| bad(format!("the platform cannot be sent: {error}")))?;
        let mut images: Vec<WantedImage> = Vec::new();
        for text in &request.references {
            let reference = self.parse(text)?.to_string();
            let reference =
                reference.parse().map_err(|error| bad(format!("{text} cannot be sent: {error}")))?;
            let image = WantedImage { reference, platform: platform.clone() };
            if !images.contains(&image) {
                images.push(image);
            }
        }
        match images.len() {
            0 => Err(bad("no image is named".to_owned())),
            1..=MAX_PRELOADS => Ok(images),
            many => Err(bad(format!("{many} images at once, where a node takes at most {MAX_PRELOADS}"))
                .hint("preload some of them first")),
        }
    }

    /// Those who are meant, each once, with the names that they are told by.
    fn targets(&self, names: Option<&[String]>) -> Vec<(String, Target)> {
        let (me, neighbours) = (self.key.node(), self.swarm.neighbours());
        let Some(names) = names else {
            let near = neighbours.iter().filter(|neighbour| neighbour.class == LinkClass::Lan);
            let near = near.map(|near| (near.node.to_string(), Target::There(near.node)));
            return std::iter::once((me.to_string(), Target::Here)).chain(near).collect();
        };
        let mut targets: Vec<(String, Target)> = Vec::new();
        for name in names {
            let (name, target) = match meant(name, &me, &neighbours) {
                Ok(node) if node == me => (node.to_string(), Target::Here),
                Ok(node) => (node.to_string(), Target::There(node)),
                Err(why) => (name.clone(), Target::Nobody(why)),
            };
            if targets.iter().all(|(other, _)| *other != name) {
                targets.push((name, target));
            }
        }
        targets
    }

    /// Has one node bring one image, and waits until it is there or does not come.
    pub(super) async fn bring_to(
        &self,
        target: &Target,
        image: &WantedImage,
        tell: &mut (dyn FnMut(&Preloading) + Send),
    ) -> Result<Preloading, String> {
        if let Target::Nobody(why) = target {
            return Err(why.clone());
        }
        let (mut begun, mut heard, mut known) = (0, Instant::now(), false);
        let mut pause = FIRST_POLL;
        loop {
            if !known {
                match self.ask_to_bring(target, image).await {
                    Some(Ok(())) if begun < MAX_BEGUN => {
                        (known, heard) = (true, Instant::now());
                        begun += 1;
                    }
                    Some(Ok(())) => return Err(format!("it was started again {MAX_BEGUN} times meanwhile")),
                    Some(Err(why)) => return Err(why.to_string()),
                    None => {}
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(POLL_TIME);
            if known {
                match self.ask_how(target, image).await {
                    Some(Some(Preloading { state: PreloadState::Failed(why), .. })) => {
                        return Err(why.to_string());
                    }
                    Some(Some(done)) if done.state == PreloadState::Done => return Ok(done),
                    Some(Some(preloading)) => {
                        heard = Instant::now();
                        tell(&preloading);
                    }
                    Some(None) => known = false,
                    None => {}
                }
            }
            if heard.elapsed() >= AWAY_TIME {
                return Err(format!(
                    "it went away, or has not answered for {} s; what has arrived there is kept: preload again once it \
                     is back",
                    AWAY_TIME.as_secs()
                ));
            }
        }
    }

    async fn ask_to_bring(&self, target: &Target, image: &WantedImage) -> Option<Result<(), PreloadRefusal>> {
        match target {
            Target::Here => Some(self.preloads.begin(&self.key.node(), image)),
            Target::There(node) => self.swarm.preload(*node, image.clone()).await,
            Target::Nobody(_) => None,
        }
    }

    async fn ask_how(&self, target: &Target, image: &WantedImage) -> Option<Option<Preloading>> {
        match target {
            Target::Here => Some(self.preloads.look(image)),
            Target::There(node) => self.swarm.preloading(*node, image.clone()).await,
            Target::Nobody(_) => None,
        }
    }
}

/// The node that a name means: its peer id, the end of that, or its address as `wherry peers` shows it.
fn meant(name: &str, me: &NodeId, neighbours: &[Neighbour]) -> Result<NodeId, String> {
    let is_end = name.len() >= LEAST_ID_END;
    let is_meant = |node: &NodeId| {
        let id = node.to_string();
        id == name || (is_end && id.ends_with(name))
    };
    let near = neighbours.iter().filter(|it| is_meant(&it.node) || it.address == name).map(|it| it.node);
    let found: BTreeSet<NodeId> = near.chain(is_meant(me).then_some(*me)).collect();
    match (found.len(), found.first()) {
        (1, Some(node)) => Ok(*node),
        (0, _) if name.parse::<NodeId>().is_ok() => {
            Err("it is not connected: 'wherry peers' shows who is".to_owned())
        }
        (0, _) => Err(format!(
            "no node is connected whose peer id ends like this, in at least {LEAST_ID_END} characters, or that has this \
             address: 'wherry peers' shows who is"
        )),
        (many, _) => Err(format!("{many} nodes are meant by this: write more of the peer id")),
    }
}

/// What a client was told of one image at one node.
struct Told<'a> {
    node: &'a str,
    image: &'a WantedImage,
    events: &'a Events<PreloadEvent>,
    last: Option<Preloading>,
}

impl Told<'_> {
    fn event(&self, here: u64, bytes: u64, step: PreloadStep, why: Option<String>) -> PreloadEvent {
        PreloadEvent::Progress(PreloadProgress {
            node: self.node.to_owned(),
            reference: self.image.reference.to_string(),
            bytes: here,
            of_bytes: bytes,
            step,
            why,
        })
    }

    fn tell(&mut self, now: &Preloading) {
        if self.last.as_ref() == Some(now) {
            return;
        }
        let (step, why) = match &now.state {
            PreloadState::Waiting(why) => (PreloadStep::Waiting, Some(why.to_string())),
            _ => (PreloadStep::Running, None),
        };
        self.events.tell_if_free(self.event(now.here, now.bytes, step, why));
        self.last = Some(now.clone());
    }

    /// Tells how it ended, which a client must not miss.
    async fn end(&self, ended: &Result<Preloading, String>) {
        let event = match ended {
            Ok(done) => self.event(done.here, done.bytes, PreloadStep::Done, None),
            Err(why) => {
                let (here, bytes) = self.last.as_ref().map_or((0, 0), |last| (last.here, last.bytes));
                self.event(here, bytes, PreloadStep::Failed, Some(why.clone()))
            }
        };
        self.events.tell(event).await;
    }
}

#[cfg(test)]
mod tests {
    use wherry_proto::SecretKey;

    use super::*;

    #[test]
    fn a_node_is_meant_by_its_peer_id_by_the_end_of_that_or_by_its_address() {
        let node = |seed| SecretKey::from_seed([seed; 32]).node();
        let neighbour = |seed| Neighbour {
            node: node(seed),
            site: "harbour".to_owned(),
            class: LinkClass::Lan,
            address: format!("192.0.2.{seed}:4050"),
            since: 0,
        };
        let neighbours = [neighbour(2), neighbour(3)];
        let meant = |name: &str| meant(name, &node(1), &neighbours);
        let end = |seed, len: usize| {
            let id = node(seed).to_string();
            id[id.len() - len..].to_owned()
        };
        for seed in [1, 2, 3] {
            assert_eq!(meant(&node(seed).to_string()), Ok(node(seed)));
            assert_eq!(meant(&end(seed, LEAST_ID_END)), Ok(node(seed)));
            assert!(meant(&end(seed, LEAST_ID_END - 1)).is_err());
        }
        assert_eq!(meant("192.0.2.3:4050"), Ok(node(3)));
        assert!(meant(&node(4).to_string()).unwrap_err().contains("is not connected"));
        assert!(meant("harbour").unwrap_err().contains("'wherry peers'"));
        assert!(meant("").is_err());
    }
}
