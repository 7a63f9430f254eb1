"""Chorus for ComfyUI: video generation that remembers."""

from comfy_api.latest import ComfyExtension, io

WEB_DIRECTORY = "./web"


class ChorusExtension(ComfyExtension):
    async def on_load(self) -> None:
        from server import PromptServer

        from .chorus.comfy import users
        from .chorus.comfy.files import on_prompt
        from .chorus.comfy.server import register

        if (server := getattr(PromptServer, "instance", None)) is not None:  # none where nodes run without a server
            register(server.routes)
            server.add_on_prompt_handler(on_prompt)
            users.note_prompts(server)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .nodes.cache_lookup import ChorusCacheLookup
        from .nodes.cache_store import ChorusCacheStore
        from .nodes.chorus_all import ChorusAllInOne
        from .nodes.srd_mask import ChorusSRDMask
        from .nodes.stage1_reuse import ChorusStage1Reuse
        from .nodes.stage3_refine import ChorusStage3Refine
        from .nodes.tgaa_patch import TGAAPatch

        return [
            ChorusCacheLookup,
            ChorusStage1Reuse,
            ChorusSRDMask,
            TGAAPatch,
            ChorusStage3Refine,
            ChorusCacheStore,
            ChorusAllInOne,
        ]


async def comfy_entrypoint() -> ChorusExtension:
    return ChorusExtension()
