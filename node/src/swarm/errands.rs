//! What neighbours ask of which this node has to ask an origin.

use std::sync::{Mutex, MutexGuard, PoisonError};

use wherry_proto::Question;

/// How many different questions this node asks an origin about at a time, for all neighbours together. One more is refused at
/// once: whoever asks has others to ask, or asks the origin itself.
pub(super) const MAX_ERRANDS: usize = 32;

/// How many bytes of manifests are given together to those who ask the same at the same time: 64 times a manifest of a dozen
/// layers, and at 400 kbit/s what goes out within [`RESOLVE_TIME`](super::RESOLVE_TIME). Whoever is left out has it from the others.
const MOST_TOLD: usize = 128 << 10;

/// The questions of all neighbours that wait for an origin. What many ask takes one place: a site that begins at once asks one
/// node about the same image.
#[derive(Default)]
pub(super) struct Errands(Mutex<Vec<Asked>>);

/// A question, how many ask it now, and how many bytes of manifests were given to them.
struct Asked {
    question: Question,
    askers: usize,
    told: usize,
}

impl Errands {
    fn lock(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many different ones there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// A place for a question, if there is one.
    pub(super) fn begin<'a>(&'a self, question: &'a Question) -> Option<Errand<'a>> {
        let mut all = self.lock();
        // To lead is asked of a node by each for itself.
        let is_shared = matches!(question, Question::Resolve(_));
        let known = all.iter().position(|asked| is_shared && asked.question == *question);
        match known {
            Some(place) => all[place].askers += 1,
            None if all.len() >= MAX_ERRANDS => return None,
            None => all.push(Asked { question: question.clone(), askers: 1, told: 0 }),
        }
        Some(Errand { errands: self, question })
    }
}

/// A place among the errands.
pub(super) struct Errand<'a> {
    errands: &'a Errands,
    question: &'a Question,
}

impl Errand<'_> {
    /// What is asked.
    pub(super) const fn question(&self) -> &Question {
        self.question
    }

    /// Whether so many bytes of a manifest may be given; then they count as given.
    pub(super) fn may_tell(&self, len: usize) -> bool {
        let mut all = self.errands.lock();
        let asked = all.iter_mut().find(|asked| asked.question == *self.question);
        asked.is_some_and(|asked| {
            let may = asked.told + len <= MOST_TOLD;
            asked.told += if may { len } else { 0 };
            may
        })
    }
}

impl Drop for Errand<'_> {
    fn drop(&mut self) {
        let mut all = self.errands.lock();
        let Some(place) = all.iter().position(|asked| asked.question == *self.question) else { return };
        all[place].askers -= 1;
        if all[place].askers == 0 {
            all.swap_remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use wherry_proto::MAX_MANIFEST_TOLD;

    use super::*;

    #[test]
    fn a_node_gives_few_of_those_who_ask_the_same_a_long_manifest_and_all_of_them_a_short_one() {
        let errands = Errands::default();
        let question = Question::Resolve("r.example/a:1".parse().unwrap());
        let told = |len: usize| {
            let askers: Vec<_> = (0..64).map(|_| errands.begin(&question).unwrap()).collect();
            askers.iter().filter(|errand| errand.may_tell(len)).count()
        };
        assert_eq!(told(1_000), 64);
        assert_eq!(told(MAX_MANIFEST_TOLD), MOST_TOLD / MAX_MANIFEST_TOLD);
        assert_eq!(told(1_000), 64, "those who ask later begin anew");
    }
}
