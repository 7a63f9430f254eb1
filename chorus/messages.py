"""The sentences that people are shown: each has a code, an English text, and places for its values.

The pages find their own language's sentence by the code (`said` in locales/*/main.json, whose English is this table).
Logs, the command line, answers to other programs and saved history have the English text. Messages of the operating
system, of a library or a server are values of such a sentence and are not translated; nor are the details of why a
bundle or one of its entries is refused, below which pages show the kind of refusal (`bundle.error`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TEXTS = {
    # what the look-up found
    "lookup.off": "mode is off",
    "lookup.write_only": "mode is write only",
    "lookup.unreadable": "the cache could not be read: {error}",
    "lookup.hit": "hit {score} ≥ {threshold}: '{prompt}'",
    "lookup.chosen": "chosen by hand, {score}: '{prompt}'",
    "lookup.identical": "the same request was stored as {entry}",
    # why nothing is reused
    "miss.empty": "no entry of the cache has a prompt that was embedded this way",
    "miss.nearest": "no entry to start from; nearest: {nearest}",
    "miss.near": "{score} '{prompt}': {why}",
    "miss.below": "score below {threshold}",
    "miss.chosen_gone": "the chosen source '{entry}' is not in this cache (any more)",
    "miss.chosen_differs": "the chosen source '{prompt}' cannot be used: {why}",
    "miss.chosen_reused": "the chosen source '{prompt}' was itself made from another video",
    "miss.no_stage": "a match was found, but the sampled model has no Chorus stage node that uses it",
    "miss.image": "the source was made with another start image, control video, audio or reference",
    "miss.seed": "the same prompt with another seed: another take is wanted, so nothing is reused",
    "miss.other_steps": "the same prompt and seed with another number of steps or other sigmas: sampled in full, so "
    "that later requests can start from it",
    "miss.other_sampler": "the same prompt and seed with another sampler: sampled in full, so that later requests can "
    "start from it",
    "miss.steps": "with {steps} steps nothing can be skipped: K1 rounds to 0",
    "miss.nothing_saved": "K1, K2 and maximum as they are set leave no step to skip",
    "miss.no_state": "the source keeps no state at sigma {sigma}",
    # in which respects an entry differs
    "differs.weights": "other weights",
    "differs.patches": "other LoRAs or model patches, or other settings of them",
    "differs.latent_format": "other latent format ({here} here, {there} there)",
    "differs.shape": "other shape ({here} here, {there} there)",
    "differs.tasks": "other task ({here} here, {there} there)",
    "differs.task": "other task",
    "differs.image": "other start image, control video, audio or reference",
    "differs.start": "other start latent",
    "differs.style": "another style picture, or another node behind the text encoder is set otherwise",
    "differs.prediction": "other prediction type ({here} here, {there} there)",
    "differs.audio": "other audio",
    "differs.background_video": "other background video, or other previous frames",
    "differs.camera": "other camera movement",
    "differs.clip_vision": "other image for CLIP vision",
    "differs.control_mask": "other control mask",
    "differs.control_or_reference": "other control video or reference image",
    "differs.control_strength": "other strength of the control",
    "differs.control_video": "other control video",
    "differs.encoder_input": "other input of the text encoder beside the text",
    "differs.face_video": "other face video",
    "differs.frame_rate": "other frame rate",
    "differs.keyframes": "other keyframes",
    "differs.later_frames": "other end image or later frames",
    "differs.mask": "other mask",
    "differs.noise_mask": "other noise mask",
    "differs.pose_video": "other pose video",
    "differs.previous_frames": "other previous frames",
    "differs.range": "an input applies to other steps",
    "differs.reference_image": "other reference image",
    "differs.source_or_reference": "other source video or reference",
    "differs.start_image": "other start image",
    # why Chorus left a run alone
    "bypassed.fault": "an error inside Chorus: {error}",
    "bypassed.failed_hit": "the run that started from the cache failed ({error}); it was sampled again without the "
    "cache",
    "bypassed.not_understood": "Chorus cannot tell this request apart from others ({why})",
    "bypassed.noise_mask": "Chorus cannot serve the noise mask of this latent: {why}",
    "bypassed.other_mask": "sampling has another noise mask than the latent given to ChorusCacheLookup",
    "bypassed.own_steps": "Chorus does not know this sampler, or the sampler chooses its own steps",
    "bypassed.prediction": "the model predicts {prediction}; only flow models are reused",
    "bypassed.free_noise": "FreeNoise reorders the noise of context windows; switch FreeNoise off to reuse videos",
    "bypassed.shape": "the sampled latent is {sampled}, the look-up was for {expected}: "
    "connect the same latent to ChorusCacheLookup",
    "bypassed.model": "the sampled model or its LoRAs are not those given to ChorusCacheLookup",
    "bypassed.patched_later": "other nodes have patched the model after ChorusCacheLookup: put the Chorus nodes after "
    "all other model patches",
    "bypassed.other_expert": "the sampled model is not the one given to ChorusCacheLookup; if two models sample one "
    "video, connect the second one to low_noise_model there",
    "bypassed.text": "the sampled prompt is not the one given to ChorusCacheLookup: connect the same positive "
    "CONDITIONING there",
    "bypassed.text_unknown": "Chorus cannot tell whether the sampled prompt is the one given to ChorusCacheLookup: "
    "connect the positive CONDITIONING there",
    "bypassed.no_steps": "the schedule has no steps",
    "bypassed.hooks": "the conditioning carries hooks, which change the weights between steps",
    "bypassed.start_latent": "sampling starts from another latent than the one given to ChorusCacheLookup",
    "bypassed.middle": "sampling starts in the middle of a schedule, from a latent that was not sampled under this "
    "plan",
    "bypassed.gap": "the second sampler does not begin at the sigma where the first one ended: give both the same "
    "scheduler and number of steps",
    "bypassed.second": "the first sampler's part came from the cache, the second part was sampled without Chorus: "
    "{reason}",
    "bypassed.streams": "the latent holds several streams (picture and sound), which Chorus does not reuse yet",
    "bypassed.dimensions": "the latent has {count} dimensions; Chorus reuses images and videos, which have 4 or 5",
    # why a noise mask cannot be served
    "mask.values": "it has other values than 0 and 1",
    "mask.rows": "it is not one mask of the picture for all channels and the whole batch",
    "mask.all": "it keeps everything, so that nothing is sampled",
    "mask.changes": "another node changes it from step to step",
    "mask.noise": "the sampler draws noise of its own for what is kept (ddim does)",
    "mask.parts": "two samplers share the schedule, or sampling adds no noise",
    # why a request has no text by which it could be found
    "text.connect": "the prompt cannot be compared: connect CLIP or the positive CONDITIONING to ChorusCacheLookup, or "
    "put open_clip weights on this machine ({reason})",
    "text.connect_positive": "embedding 'conditioning' needs the positive CONDITIONING: connect it to "
    "ChorusCacheLookup",
    "text.open_clip": "embedding 'open_clip' cannot be used: {reason}",
    "text.empty": "the positive conditioning holds no text",
    # what the masks need
    "masks.connect": "masks from 'mask': connect a MASK to ChorusSRDMask, or choose 'look'",
    "masks.way": "masks from '{way}': expected one of {ways}",
    "masks.not_installed": "segment anything is not installed: pip install segment-anything",
    "masks.checkpoint": "SAM checkpoint '{checkpoint}': put sam_vit_h, sam_vit_l or sam_vit_b weights in models/sams",
    # what was done otherwise than asked
    "note.not_identical": "this request cannot be recognised when it is queued again ({why})",
    "note.text_from_graph": "the prompt given to ChorusCacheLookup is not the one that is sampled; the sampled one is "
    "used",
    "note.text_unknown": "the graph does not tell which text is sampled; its encoding alone is compared",
    "note.k1_remaining": "K1 lowered from {wanted} to {k1}: with CFG {cfg} and this sampler, more of the {steps} "
    "steps must be computed",
    "note.k1_first_expert": "K1 lowered from {wanted} to {k1}: the first expert computes at least one step",
    "note.first_expert_skipped": "all steps of the first expert are taken from the source, so it is not run",
    "note.reads_uncond": "no selective steps: {sampler} needs the estimate without CFG for the whole picture",
    "note.attention": "no selective steps: another node replaces the attention",
    "note.composition": "the composition of the match is kept: the noise is that of its seed {seed}, and the seed of "
    "this request has no effect. To use this request's own seed, set take to 'another take'",
    "note.mask_later": "the first step of the run shows where it differs; the mask appears then",
    "note.everywhere": "more than half of the picture is marked as changed, so little is reused",
    "note.look_blind": "the first step shows no difference although the prompts differ, so it cannot tell where the "
    "picture changes, and nothing of the match is kept",
    "note.context_memory": "no selective steps: too little memory is free for the keys and values of the tokens that "
    "they leave out",
    "note.look_start": "early start instead of look and join: sampling does not begin with noise alone (first sigma "
    "{sigma}, or a start latent)",
    "note.look_noise": "early start instead of look and join: the sampler of this run or of the match draws noise",
    "note.look_uncond": "early start instead of look and join: {sampler} needs the estimate without CFG",
    "note.look_cfg": "early start instead of look and join: the match was made with CFG {there}, this run has CFG "
    "{here}",
    "note.look_steps": "early start instead of look and join: with {steps} steps none can be skipped after the look",
    "note.look_seed": "early start instead of look and join: the noise of the match cannot be drawn again from its "
    "seed",
    "note.look_sigmas": "early start instead of look and join: the match was sampled over other sigmas",
    "note.look_conditions": "early start instead of look and join: the match had another negative prompt, or a "
    "conditioning applies to a part of the schedule only",
    "note.look_step_cache": "early start instead of look and join: a step cache (EasyCache, LazyCache) is on, or was "
    "on when the match was made",
    "note.look_guider": "early start instead of look and join: the match was sampled with another guider or other "
    "context windows",
    "note.look_sampler": "early start instead of look and join: the match was sampled with {there}, this run with "
    "{here}",
    "note.look_parts": "early start instead of look and join: the match was made by several samplers, and it is "
    "not kept what each of them was set to",
    "note.look_seeded": "early start instead of look and join: with another seed, this model is given its picture "
    "under other noise",
    "note.look_states": "early start instead of look and join: the match keeps no state of its first step",
    "note.look_tokens": "early start instead of look and join: an earlier version of Chorus kept the match's first "
    "step, with tokens of another size",
    "note.look_masks": "no selective steps: masks from 'look' need the method look and join",
    "note.not_looked": "identical requests were not looked for: {error}",
    "note.k1_lowered": "K1 lowered from {wanted} to {k1}: the source's sampler draws noise, so a run can only start "
    "at the sigma of a kept state",
    "note.k1_look": "{skipped} steps are skipped where K1 asks for {wanted}: the look, the steps that renew the "
    "picture and those from K2 on are computed",
    "note.look_second": "the second sampler goes on by itself: after a look, no step can be skipped in one that draws "
    "noise, needs the estimate without CFG, has a step cache or a conditioning of a part of the schedule",
    "note.look_second_other": "the second sampler computes all its steps: there, the match was sampled with another "
    "sampler, CFG, negative prompt or guider, or with a step cache",
    "note.draws_noise": "{sampler} draws noise during sampling: the computed steps draw other noise than a run in full",
    "note.areas": "no selective steps: a conditioning applies to a part of the picture only",
    "note.masks_unused": "the masks have no effect: no step lies between K1 and K2",
    "note.windows": "no selective steps: the model is sampled in context windows",
    "note.easycache": "a step cache (EasyCache, LazyCache) is on. It cannot be combined with selective steps, so all "
    "steps are full",
    "note.network": "no selective steps: Chorus does not know how to leave out tokens of {network}",
    "note.parts": "no selective steps: these parts of {network} need every token: {parts}",
    "note.grid": "no selective steps: masks of {grid} do not fit this latent",
    "note.patched": "no selective steps: another node patches the network's blocks or attention",
    "note.no_text": "no mask from attention: to compare the words, connect the positive CONDITIONING or CLIP to "
    "ChorusCacheLookup",
    "note.no_attention": "no mask from attention: the source has none recorded",
    "note.only_new": "no mask from attention: the prompt only adds words, and attention does not tell where in the "
    "picture they will appear",
    "note.same_words": "the prompts say the same, so attention marks nothing",
    "note.combined": "no word is amplified: the positive conditioning is a combination",
    "note.no_blocks": "no word is amplified: Chorus does not know the blocks of {network}",
    "note.two_samplers": "no other request can start from this run: only one of its two samplers draws noise",
    # what became of a finished run
    "kept.storing": "being stored as {entry}",
    "kept.storing_states": "being stored as {entry}, {count} checkpoints",
    "not_kept.bypassed": "nothing stored: this run was sampled without Chorus: {reason}",
    "not_kept.no_run": "nothing stored: no finished run; is a Chorus stage node on the model that was sampled?",
    "not_kept.unfinished": "nothing stored: the run stopped at σ = {sigma}; store after the last sampler",
    "not_kept.other_latent": "nothing stored: this latent is not what the sampler of this plan returned",
    "not_kept.there": "nothing stored: this request is in the cache already",
    "not_kept.mode": "nothing stored: the look-up's mode does not write",
    "not_kept.fault": "nothing stored: {error}",
    "not_kept.not_finite": "nothing stored: the latent holds values that are not finite (NaN)",
    # what is wrong with a cache or an entry
    "fault.unavailable": "The cache at {place} is unavailable: {reason}. {advice}",
    "fault.missing": "Cache entry {entry} is not available: {reason}. The request counts as a miss.",
    "fault.damaged": "Cache entry {entry} is damaged ({reason}; file {file}). It is in quarantine and will not be "
    "used again. If this happens often, check the disk and the memory.",
    "fault.too_large": "An entry of {bytes} bytes does not fit in a cache of {limit} bytes. "
    "Raise the cache's size limit, or store fewer or smaller checkpoints.",
    "fault.vectors": "The vectors kept for embedder '{embedder}' have {kept} numbers, this one has {length}. "
    "Give another embedder another name, or clear the cache.",
    "reason.gone": "it was evicted or forgotten",
    "reason.file_gone": "its file {file} is gone",
    "reason.no_tensor": "it has no tensor {names}; it has {known}",
    "reason.no_frames": "it was stored without a preview: connect frames to Chorus Cache Store",
    "reason.no_preview": "it has no preview: {error}",
    "reason.row": "the checksum of its row in the catalog is wrong",
    "reason.disk_full": "the disk is full ({error})",
    "reason.not_permitted": "it may not be written to ({error})",
    "reason.closed": "it was closed",
    "reason.locked": "another process kept it locked for more than {seconds} s",
    "reason.locked_by_worker": "another worker kept it locked for more than {seconds} s",
    "reason.catalog": "the catalog is damaged ({error})",
    "reason.sqlite": "SQLite says: {error}",
    "reason.postgres": "PostgreSQL says: {error}",
    "reason.foreign": "the file is another program's database",
    "reason.newer": "a newer Chorus made it (catalog version {version}, this one knows {known})",
    "reason.old": "it is damaged or of an earlier Chorus, and its folder cannot be written to",
    "reason.file_system": "its file system cannot hold a shared SQLite database",
    "reason.no_room_bytes": "{reserved} bytes are being stored and {pinned} are pinned, "
    "so that {more} more would exceed {limit}",
    "reason.no_room_entries": "{reserved} entries are being stored and {pinned} are pinned, "
    "so that {more} more would exceed {limit}",
    "reason.no_room_shared": "pinned entries and what is being stored leave less than {more} of {limit} bytes",
    "reason.overtaken": "minutes passed, or the catalog was replaced, while an entry was being written",
    "reason.not_deleted": "a file cannot be deleted yet ({error})",
    "reason.busy": "{count} results of {bytes} bytes are still being written",
    "reason.not_written": "an entry was not written within {seconds} s",
    "reason.database_away": "the database does not answer ({error})",
    "reason.store_silent": "it does not answer in time",
    "reason.tables": "its tables are missing or old and this role may not make them ({error})",
    "reason.no_folder": "there is no such folder",
    "reason.location": "{files} is not where the files of this database's tenant lie",
    "reason.package": "a package is missing ({error})",
    "reason.not_postgres": "it is not a postgresql:// URL",
    "reason.libpq": "libpq cannot read the URL",
    "reason.not_set": "{variable} is not set",
    "reason.not_url": "it is not a URL",
    "reason.scheme": "{scheme} is no location for blobs",
    "reason.no_scheme": "a path without a scheme is no location for blobs",
    "reason.credentials": "it carries credentials or options",
    "reason.options": "it says more than where the database is ({names}); a URL that is chosen in ComfyUI may hold "
    "only {known}",
    "reason.bucket": "a bucket needs credentials, and a location that is chosen in ComfyUI gets none of the "
    "environment's",
    "reason.tenant": "'{tenant}' is no name for a tenant",
    # what to do about it
    "advice.space": "Free some space there, or choose another cache folder.",
    "advice.permissions": "Check the permissions of the folder, or choose another one that can be written to.",
    "advice.disk": "Check free space and permissions of the folder.",
    "advice.reopen": "Open it again.",
    "advice.tried_again": "It is tried again with the next request.",
    "advice.soon": "Requests count as misses meanwhile; it is tried again every few seconds.",
    "advice.rebuilt": "It is checked, and rebuilt from the cached files, with the next request.",
    "advice.other_folder": "Choose another cache folder.",
    "advice.local_disk": "Choose a cache folder on a local disk.",
    "advice.update": "Update Chorus to use it.",
    "advice.unpin": "Unpin or forget some, or raise the cache's limit.",
    "advice.limit": "Raise the cache's limit.",
    "advice.next": "The entry was not kept; the next one will be.",
    "advice.deleted_later": "It is not used any more; it is deleted when the cache is opened in an hour or later.",
    "advice.too_slow": "The disk is too slow; this result is not kept.",
    "advice.slow": "The disk is slow; it is tried again with the next request.",
    "advice.set_up": "docs/shared_cache.md says how to set it up.",
    "advice.owner": "Let their owner open the cache once; docs/shared_cache.md says how.",
    "advice.mount": "Mount the share, or make the folder.",
    "advice.location": "Mount the share, or correct CHORUS_CACHE_BLOBS; docs/shared_cache.md says how to move it.",
    "advice.requirements": "In ComfyUI's Python: pip install -r requirements.txt",
    "advice.url": "Correct {variable}, or unset it to cache locally.",
    "advice.blobs": "Set it to a bucket (s3://…) or a folder (file:///…).",
    "advice.schemes": "Expected one of {schemes}, for example file:///mnt/share.",
    "advice.credentials": "Give them in the environment variables of the object store.",
    "advice.environment": "Set {variable} in the environment of ComfyUI instead.",
    "advice.tenant": "Use lower-case letters, digits, '_' and '-', at most 63 of them.",
    "advice.encode": "Percent-encode special characters.",
    # what a page asked for in vain
    "route.no_such_cache": "there is no cache '{cache}'; there are: {caches}",
    "route.no_embedder": "prompts cannot be compared by meaning: {error}",
    "route.fixed": "it is set by {variable} in the environment of ComfyUI: change it there",
    "route.limit": "a limit of {limit} GB: choose {least} to {most} GB",
    "route.limit_shared": "the caches are shared between machines: {variable} in the environment of a worker sets "
    "their limit",
    "route.limit_file": "the file {file} is not Chorus's: move it away, or choose another folder for the caches",
    "route.host": "the request names the host {host}, which Chorus does not know: if it is a name of this server, add "
    "it to {variable} in the environment of ComfyUI",
    "route.origin": "a page of {origin} asked, which is not one of this server: if it may ask, add its host name to "
    "{variable} in the environment of ComfyUI",
    "route.user": "ComfyUI knows no user '{user}': choose one on its start page",
    # where the caches may be put
    "place.exposed": "ComfyUI listens on {listen}, so others could choose where it writes: set {name} in its "
    "environment, or {variable}=1 there to allow it here",
    "place.relative": "'{folder}' is no absolute path: give one such as /data/chorus",
    "place.no_folder": "'{folder}' is a file, not a folder",
    "place.password": "the URL holds a password, which must not be kept in settings: set {variable} in the "
    "environment of ComfyUI instead",
    "place.needs_password": "the database asks for a password, and a URL that is chosen in ComfyUI gets none of the "
    "environment's: set {variable} in the environment instead",
}

_TWO_DIGITS = ("score", "threshold")  # the pages too: web/lib/i18n.js


@dataclass(frozen=True)
class Message:
    """A sentence of `TEXTS` with its values: texts, numbers, further messages, or lists of these."""

    code: str
    values: Mapping[str, Any]

    def __str__(self) -> str:
        return TEXTS[self.code].format(**{name: _english(name, value) for name, value in self.values.items()})

    def to_json(self) -> dict[str, Any]:
        """{"code", "values", "text"}, for a page."""
        return {"code": self.code, "values": {n: to_json(v) for n, v in self.values.items()}, "text": str(self)}


def say(code: str, **values: Any) -> Message:
    """The message `code` of `TEXTS`. A value that is neither text, number, message nor list counts as its text.

    tests/face/test_messages.py reads every call, so that none has a code or a value that the table lacks.
    """
    return Message(code, {name: _plain(value) for name, value in values.items()})


def said_by(error: Exception) -> Message | str:
    """What an error says: its message where it has one, else its text."""
    said = getattr(error, "said", None)
    return said if isinstance(said, Message) else str(error)


def to_json(value: Any) -> Any:
    """A message's value, or a message, as plain data."""
    if isinstance(value, Message):
        return value.to_json()
    return [to_json(one) for one in value] if isinstance(value, tuple) else value


class BadInput(ValueError):
    """What was asked for cannot be done; `said` tells why, and what to do."""

    def __init__(self, said: Message):
        super().__init__(str(said))
        self.said = said


def _plain(value: Any) -> Any:
    if isinstance(value, Message | str | int | float):
        return value
    return tuple(_plain(one) for one in value) if isinstance(value, Sequence) else str(value)


def _english(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return "; ".join(_english(name, one) for one in value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.2f}" if name in _TWO_DIGITS else f"{value:,.3f}".rstrip("0").rstrip(".")
    return str(value)
