"""Which recorded steps a person did: those that HG-DAgger learns from, and no others.

HG-DAgger (Kelly et al. 2019, HG-DAgger: Interactive imitation learning with human experts): a
person watches the policy and takes over where it goes wrong. What the person did there is added
to the demonstrations, and cloned with them; what the policy did is not.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from robot_rl import registry
from robot_rl.imitation.data import Episode
from robot_rl.storage import sources


class HumanSteps:
    """Chooses a person's steps, episode by episode, and counts what is used and what is not.

    Demonstrations, those of a scripted demonstrator too, are taken whole, but for those that were
    judged to have failed; of an episode that a policy ran, however it ended, the steps in which a
    person led the arm.
    """

    def __init__(self) -> None:
        names = (
            'demonstrations',
            'demonstrated_steps',
            'failed_demonstrations',  # left out
            'interventions',
            'intervened_steps',
            'policy_steps',  # left out
            'held_steps',  # left out: the guard held the arm, nobody led it
        )
        self.counts = dict.fromkeys(names, 0)

    def __call__(self, episode: Episode) -> np.ndarray:
        """Return which of the T steps of an episode a person did, bool [T]."""
        steps, header = len(episode.columns['action/applied']), episode.header
        # Where there is no such column nobody took over: simulated, or imported.
        led = episode.columns.get('source')
        shown = led is None and header.policy == registry.SCRIPTED
        if shown or not sources.by_policy(header.source):
            if header.success is False:
                self._add(failed_demonstrations=1)
                return np.zeros(steps, bool)
            self._add(demonstrations=1, demonstrated_steps=steps)
            return np.ones(steps, bool)
        if led is None:
            led = np.full(steps, sources.POLICY)
        by_person, by_policy = led == sources.PERSON, led == sources.POLICY
        self._add(
            interventions=sources.count_interventions(led.tolist()),
            intervened_steps=int(by_person.sum()),
            policy_steps=int(by_policy.sum()),
            held_steps=int((~by_person & ~by_policy).sum()),
        )
        return by_person

    def _add(self, **counts: int) -> None:
        for name, count in counts.items():
            self.counts[name] += count


def told(counts: Mapping[str, int]) -> str:
    """Return the counts of HumanSteps in words."""
    words = (
        '{demonstrated_steps} steps of {demonstrations} demonstrations and {intervened_steps} of '
        '{interventions} interventions were used; {policy_steps} of the policy and {held_steps} '
        'in which nobody led were not'
    )
    if counts['failed_demonstrations']:
        words += '; {failed_demonstrations} demonstrations that failed were left out'
    return words.format_map(counts)
