"""What is known of the host's samplers. With a sampler that is not known here, runs are sampled without Chorus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampler:
    """name: without "sample_". draws_noise: it adds noise of its own, so that a run is not just its initial noise
    and its σ. least_steps: with fewer steps in a call the sampler does not denoise.
    """

    name: str
    draws_noise: bool
    least_steps: int = 1

    @property
    def reads_uncond(self) -> bool:
        """Whether it goes on from the estimate without CFG as well, which no selective step has for all tokens."""
        return self.name.endswith("_cfg_pp")


_NOISE_FREE = {
    "euler",
    "euler_cfg_pp",
    "heun",
    "heunpp2",
    "exp_heun_2_x0",
    "dpm_2",
    "lms",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
}
_NOISY = {
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "exp_heun_2_x0_sde",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
}


def known_sampler(sampler: Any) -> Sampler | None:
    """What is known of a host's sampler object; None where nothing is, or where it chooses its own steps."""
    import comfy.extra_samplers.uni_pc
    import comfy.k_diffusion.sampling
    import comfy.samplers

    if type(sampler) is not comfy.samplers.KSAMPLER:
        return None
    function = sampler.sampler_function
    for uni_pc in ("sample_unipc", "sample_unipc_bh2"):
        if function is getattr(comfy.extra_samplers.uni_pc, uni_pc):
            return Sampler(uni_pc.removeprefix("sample_"), draws_noise=False, least_steps=2)
    name = getattr(function, "__name__", "").removeprefix("sample_")
    if function is not getattr(comfy.k_diffusion.sampling, f"sample_{name}", None):
        return None
    if name in _NOISE_FREE or name in _NOISY:
        # With these options the noise-free samplers draw noise, too.
        draws = name in _NOISY or any(sampler.extra_options.get(option) for option in ("s_churn", "eta"))
        return Sampler(name, draws)
    return None
