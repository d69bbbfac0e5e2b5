# ruff: noqa: E501  a run's settings are read best in as few lines as may be
"""Every key of every configuration file, set once to something else than its default.

`TRAIN` lists training runs, the others what is run on a trained model. DATA, IMAGES and their like stand for files that
the test makes.
"""

TRAIN = {
    "model": "model=score model.lr=5e-4 model.betas=[0.8,0.99] model.weight_decay=0.01 model.warmup_steps=2 model.schedule=constant "
    "model.dequantise=true model.validation_draws=2 model.activation_checkpointing=true seed=3",
    "conditional": "conditional=true model.label_dropout=0.3 model.condition_dropout={label:0.2} network.conditions=null",
    "guidance": "conditional=true guidance=cfg guidance.scale=3 guidance.interval=[0.2,1.6] guidance.rescale=0.5 "
    "guidance.threshold=0.99 guidance.parallel=0.5 guidance.negative={label:3} guidance.negative_scale=0.5",
    "guidance auto": "guidance=auto guidance.weak=CKPT guidance.scale=1.5 guidance.interval=[0.2,1.6] guidance.rescale=0.5 "
    "guidance.threshold=0.99 guidance.parallel=0.5",
    "guidance compose": "conditional=true guidance=compose guidance.denoisers=null guidance.weights=[2,-1] "
    "guidance.conditions=[{label:3},{}]",
    "guidance none": "guidance=none",
    "model given a measurement": "model=score model.measured={_target_:sde_diffusion.training.Measured,"
    "operator:{_target_:sde_diffusion.guidance.Downsample,factor:2},noise:0.3} "
    "model.augmentation={_target_:sde_diffusion.training.Augmentation,probability:0.5}",
    "model classifier": "model=classifier model.of=CKPT model.sde={_target_:sde_diffusion.sde.VESDE} model.sigma_data=0.4 "
    "model.times={_target_:sde_diffusion.training.UniformTimes} model.network.patch=1 model.network.channels=8 "
    "model.network.channel_mult=[1,1] model.network.blocks=2 model.network.dropout=0.2 model.network.embedding_dim=8 "
    "model.lr=5e-4 model.betas=[0.8,0.99] model.weight_decay=0.02 model.warmup_steps=2 model.schedule=constant "
    "model.dequantise=true model.validation_draws=2",
    "model vae": "model=vae model/autoencoder=mlp model.autoencoder.latent_dim=3 model.autoencoder.width=8 model.autoencoder.depth=2 "
    "model.autoencoder.dropout=0.1 model.autoencoder.patch=2 "
    "model.observation={_target_:sde_diffusion.variational.DiscretizedLogistic} model.adversary=null model.lr=5e-4 model.betas=[0.8,0.99] "
    "model.weight_decay=0.02 model.warmup_steps=2 model.schedule=constant model.dequantise=false model.validation_draws=2 "
    "objective=beta_elbo objective.beta=0.5 objective.warmup_steps=3 objective.free_nats=0.1",
    "model hvae": "model=hvae model/autoencoder=mlp_hierarchy model.autoencoder.latent_dims=[3,2,2] model.autoencoder.width=8 model.autoencoder.depth=2 "
    "model.autoencoder.dropout=0.1 model.autoencoder.deterministic_path=false model.autoencoder.inference=bottom_up model.autoencoder.patch=2 "
    "model.observation=null model.adversary=null model.lr=5e-4 model.betas=[0.8,0.99] model.weight_decay=0.02 model.warmup_steps=2 "
    "model.schedule=constant model.dequantise=false model.validation_draws=2 model.least_latents=3 "
    "objective=annealed_elbo objective.beta=0.5 objective.warmup_steps=3 objective.free_nats=0.1",
    "autoencoder conv": "model=vae model/autoencoder=conv model.autoencoder.latent_channels=2 model.autoencoder.channels=[4,4] model.autoencoder.blocks=2 "
    "model.autoencoder.dropout=0.1 model.autoencoder.patch=2 observation=categorical "
    "adversary=patch model.adversary.layers=1 model.adversary.channels=4 model.adversary.weight=0.3 model.adversary.start_step=2 model.adversary.warmup_steps=2 model.adversary.max_weight=5",
    "autoencoder patch_hierarchy": "model=hvae model/autoencoder=patch_hierarchy model.autoencoder.latent_dims=[1,3] model.autoencoder.patch=2 "
    "model.autoencoder.width=8 model.autoencoder.patch_width=8 model.autoencoder.depth=0 model.autoencoder.dropout=0.1 "
    "model.autoencoder.inference=ladder observation=logistic",
    "autoencoder conv_hierarchy": "model=hvae model/autoencoder=conv_hierarchy model.autoencoder.latents=[1,1] model.autoencoder.latent_channels=2 "
    "model.autoencoder.channels=4 model.autoencoder.dropout=0.1 model.autoencoder.inference=direct model.autoencoder.patch=2",
    "observation gaussian": "model=vae data=moons observation=gaussian model.observation.std=0.3 model.observation.learned=false",
    "observation bernoulli": "model=vae data=arrays data.path=MASKS observation=bernoulli",
    "model vq": "model=vq model/autoencoder=vq model.autoencoder.codebook_size=8 model.autoencoder.latent_channels=2 model.autoencoder.patch=1 model.autoencoder.channels=[4,4] "
    "model.autoencoder.blocks=2 model.autoencoder.dropout=0.1 model.autoencoder.decay=0.9 model.autoencoder.restart=0.5 model.observation=null "
    "model.adversary=null model.lr=5e-4 model.betas=[0.8,0.99] model.weight_decay=0.02 model.warmup_steps=2 "
    "model.schedule=constant model.dequantise=false model.validation_draws=2 objective=vq objective.commitment=0.5",
    "model latent": "model=latent first_stage.ckpt=MLPVAE model.lr=5e-4 model.betas=[0.8,0.99] model.weight_decay=0.02 "
    "model.warmup_steps=2 model.schedule=constant model.dequantise=true model.label_dropout=0.2 model.condition_dropout={label:0.3} "
    "model.validation_draws=3 model.compile=false model.activation_checkpointing=true conditional=true",
    "model vdm": "model=vdm",
    "objective iwae": "model=vae objective=iwae objective.importance=2 objective.gradient=standard",
    "texts": "captions=rendered data.captions.words=unseen data.captions.partial=0.5 data.captions.seed=1 conditional=true "
    "text=hashed text.dim=8 text.rows=64 text.subwords=false data.flip=false network=unet_small network.channels=8 network.cross_attention=[1]",
    "texts in a table": "data=folder data.root=IMAGES captions=table data.captions.path=metadata.csv data.captions.column=text "
    "data.captions.files=file_name conditional=true",
    "text minilm": "text=minilm text.layers=1 text.length=16",  # no effect on data without texts
    "no texts": "captions=none data.captions=null",
    "compile": "model.compile=true",
    "callbacks": "callbacks.ema.decay=0.9 callbacks.ema.warmup=false callbacks.ema.start_step=2 callbacks.ema.every_n_steps=2 "
    "callbacks.non_finite.every_n_steps=2 callbacks.samples.n=5 callbacks.samples.every_n_validations=2 callbacks.noise_levels.bins=4 "
    "callbacks.progress.refresh_every=1 callbacks.samples.sampler={_target_:sde_diffusion.sampling.DPMSolver,steps:3}",
    "callbacks left out": "callbacks.samples=null callbacks.noise_levels=null callbacks.final_validation=null",
    "trainer": "trainer.accelerator=cpu trainer.devices=1 trainer.num_nodes=1 trainer.strategy=auto "
    "trainer.precision=bf16-mixed trainer.gradient_clip_val=0.5 trainer.accumulate_grad_batches=2 "
    "trainer.deterministic=true trainer.enable_model_summary=true trainer.num_sanity_val_steps=1 "
    "trainer.log_every_n_steps=3 trainer.val_check_interval=4 trainer.max_steps=9",
    "time": "trainer.max_steps=-1 trainer.max_time=00:00:00:03",
    "any argument of the Trainer": "+trainer.limit_val_batches=1",
    "logger none": "logger=none",
    "logger wandb": "logger=wandb logger.wandb.mode=offline logger.wandb.project=p logger.wandb.timeout=3",
    "network mlp": "network=mlp network.width=24 network.depth=2 network.embedding_dim=16 network.embedding=fourier "
    "network.dropout=0.1 network.octaves=2 network.levels=17",
    "network unet": "network=unet network.patch=1 network.channels=8 network.channel_mult=[1,1] network.blocks=1 "
    "network.attention=[] network.cross_attention=[1] network.head_channels=4 network.dropout=0.1 network.embedding_dim=8 network.embedding=fourier "
    "network.conditions=null network.octaves=1 network.levels=17",
    "network digits": "network=digits network.patch=1 network.channels=8 network.channel_mult=[1,1] network.blocks=1 "
    "network.attention=[] network.cross_attention=[1] network.head_channels=4 network.dropout=0.2 network.embedding_dim=8 network.embedding=fourier "
    "network.conditions=null network.octaves=1 network.levels=17",
    "network unet_small": "network=unet_small network.patch=2 network.channels=8 network.channel_mult=[1,1] "
    "network.blocks=2 network.attention=[0] network.cross_attention=[1] network.head_channels=4 network.dropout=0.1 network.embedding_dim=8 "
    "network.embedding=fourier network.conditions=null network.octaves=1 network.levels=17",
    **{
        f"network {name}": f"network={name} network.conditions=null network.channels=8 network.channel_mult=[1,1] network.blocks=1 "
        "network.attention=[1] network.head_channels=4 network.dropout=0.2 network.embedding=fourier network.feature_dim=8 "
        f"network.embedding_dim=16 {settings}"
        for name, settings in {
            "ddpm": "network.decoder_attention=last network.condition_place=hidden network.modulation=scale_shift network.rescale=true "
            "network.resampling=block",
            "ddpmpp": "network.modulation=scale_shift network.resample_skip=false",
            "ncsnpp": "network.modulation=scale_shift network.resample_skip=false network.resample_filter=[1,1] network.encoder_type=skip "
            "network.decoder_type=skip",
            "ncsnpp_256": "network.modulation=scale_shift network.resample_skip=false network.resample_filter=[1,2,2,1] "
            "network.encoder_type=residual network.decoder_type=standard",
            "edm_ddpmpp": "network.stem_channels=4 network.condition_place=output network.modulation=scale_shift network.resample_skip=false",
            "edm_ncsnpp": "network.stem_channels=4 network.condition_place=output network.modulation=scale_shift network.resample_skip=false "
            "network.resample_filter=[1,1] network.encoder_type=skip",
            "adm": "network.decoder_attention=last network.condition_place=hidden network.learned_null=true network.modulation=shift "
            "network.norm_eps=1e-4 network.rescale=true network.learned_variance=true",
        }.items()
    },
    **{
        f"network dit_{size}": f"network=dit_{size} network.conditions=null data=arrays data.path=DATA data.layout=as_is data.range=[0,2] network.patch=4 network.width=24 network.depth=2 "
        "network.heads=3 network.mlp_ratio=2 network.dropout=0.1 network.embedding=positional network.feature_dim=8 "
        "network.cross_attention=true network.learned_variance=true network.layout=channels_last"
        for size in ("s", "b", "l", "xl")
    },
    **{
        f"network edm2_{size}": f"network=edm2_{size} network.conditions=null network.channels=8 network.channel_mult=[1,1] network.blocks=1 "
        "network.attention=[1] network.head_channels=4 network.dropout=0.1 network.label_balance=0.4 network.concat_balance=0.6 "
        "network.residual_balance=0.2 network.clip=100 network.resample_filter=[1,3,3,1]"
        for size in ("xxs", "xs", "s", "m")
    },
    **{
        f"sde {name}": f"sde={name} {settings}"
        for name, settings in {
            "vp": "sde.beta_min=0.2 sde.beta_max=15 sde.t_min=1e-4 sde.t_max=0.99",
            "subvp": "sde.beta_min=0.2 sde.beta_max=15 sde.t_min=1e-4 sde.t_max=0.99",
            "ve": "sde.sigma_min=0.02 sde.sigma_max=30 sde.t_min=0.01 sde.t_max=0.99",
            "cosine": "sde.log_snr_min=-12 sde.log_snr_max=12 sde.t_min=0.01 sde.t_max=0.99",
            "edm": "sde.sigma_min=0.01 sde.sigma_max=60 sde.t_min=0.02 sde.t_max=50",
            "rectified": "sde.t_min=1e-4 sde.t_max=0.99",
            "learned": "sde.log_snr_max=9 sde.log_snr_min=-4 sde.schedule=net sde.learn_ends=false sde.levels=17 objective=vdm",
        }.items()
    },
    **{
        f"denoiser {name}": f"denoiser={name} denoiser.sigma_data=0.6 denoiser.noise_conditioning=step "
        "denoiser.input_scale=none denoiser.compute_dtype=bfloat16 denoiser.channels_last=true"
        for name in ("eps", "x0", "velocity", "v", "score", "edm")
    },
    "conditioning on the time": "denoiser=eps denoiser.noise_conditioning=time",
    **{
        f"objective {name}": f"objective={name} objective.times.stratified=false {settings}"
        for name, settings in {
            "default": "objective.weighting.sigma_data=0.4 objective.times.mean=-1 objective.times.std=1.5",
            "edm": "objective.weighting.sigma_data=0.4 objective.times.mean=-1 objective.times.std=1.5",
            "latent": "objective.weighting.sigma_data=0.4 objective.times.mean=-1 objective.times.std=1.5",
            "min_snr": "objective.weighting.gamma=4",
            "vdm": "sde=learned objective.times.bins=9 objective.times.decay=0.8 objective.levels=17 objective.shape=[1,8,8] "
            "objective.decoder={_target_:sde_diffusion.density.LevelDecoder,levels:17}",
            "vdm_gradient": "sde=learned sde.schedule=knots objective.levels=17 objective.shape=[1,8,8] objective.decoder=null",
            **dict.fromkeys(("elbo", "eps", "likelihood", "score", "velocity", "x0"), ""),
        }.items()
    },
    **{
        f"data {name}": f"data={name} data.n_train=400 data.n_val=40 data.n_test=40 data.split_seed=1 "
        f"data.batch_size=16 data.seed=2 data.min_batches_per_epoch=5 {settings}"
        for name, settings in {
            "ring": "data.components=5 data.radius=0.6 data.noise=0.05",
            "checkerboard": "data.cells=6",
            "moons": "data.noise=0.06",
            "swiss_roll": "data.noise=0.04",
            "pinwheel": "data.arms=4 data.radial=0.2 data.tangential=0.08 data.twist=0.3",
        }.items()
    },
    "data ornstein_uhlenbeck": "data=ornstein_uhlenbeck data.channels=1 data.length=8 data.scale=0.3 data.correlation=2 "
    "data.n_train=400 data.n_val=40 data.n_test=40 data.split_seed=1 data.batch_size=16 data.seed=2 "
    "data.min_batches_per_epoch=5",
    "data digits": "data=digits data.batch_size=16 data.seed=2 data.min_batches_per_epoch=5 data.flip=true data.shrink=2",
    "data arrays": "data=arrays data.path=DATA data.range=[0,2] data.layout=NHW data.val_fraction=0.1 "
    "data.test_fraction=0.2 data.conditions=[] data.split_seed=1 data.batch_size=16 data.seed=2 data.min_batches_per_epoch=5 data.flip=true data.shrink=2",
    "levels of arrays": "data=arrays data.path=LEVELS data.levels=17",
    "data folder": "data=folder data.root=IMAGES data.size=[8,6] data.crop=none data.mode=RGB data.in_memory=false "
    "data.num_workers=2 data.split_seed=1 data.batch_size=16 data.seed=2 data.min_batches_per_epoch=5 data.flip=true data.shrink=2",
    **{
        f"data {name}": f"{settings} data.size=[8,6] data.crop=none data.mode=L data.n_val=10 data.image=img "
        "data.label=label data.cache=CACHE data.num_workers=2 data.batch_size=16 data.seed=2 data.min_batches_per_epoch=5 "
        "data.flip=true data.shrink=2"
        for name, settings in {
            "cifar10": "data=cifar10 data.root=PARQUET data.name=small",
            "hub": "data=hub data.name=PARQUET data.subset=null data.revision=null data.download=false",
        }.items()
    },
    "range of a folder": "data=folder data.root=DEEP data.range=[0,4095]",
    **{
        f"data {name}": f"data={name} data.root=IDX data.name=small data.size=12 data.n_val=10 data.handwriting=false data.batch_size=16 "
        "data.seed=2 data.min_batches_per_epoch=5 data.flip=true data.shrink=2"
        for name in ("mnist", "fashion_mnist")
    },
    **{
        f"experiment {name}": f"experiment={name}"
        for name in (
            "ddpm",
            "digits_likelihood",
            "edm",
            "first_stage",
            "flow",
            "hvae",
            "ncsn",
            "score_sde",
            "vae",
            "vdm",
        )
    },
    "experiment vae_mnist": "experiment=vae_mnist data.root=IDX data.n_val=10 trainer.max_steps=9",
    "experiment hvae_mnist": "experiment=hvae_mnist data.root=IDX data.n_val=10 trainer.max_steps=9",
    "experiment mnist": "experiment=mnist data.root=IDX data.n_val=10 network=mlp trainer.max_steps=9",
    "experiment mnist_small": "experiment=mnist_small data.root=IDX data.n_val=10 network=mlp trainer.max_steps=9",
    "experiment latent_mnist": "experiment=latent_mnist network=unet_small data.root=IDX data.n_val=10 first_stage.ckpt=CONVVAE trainer.max_steps=9",
    "experiment mnist_upsampler": "experiment=mnist_upsampler data.root=IDX data.n_val=10 network=mlp trainer.max_steps=9",
    "experiment cifar10_ddpm": "experiment=cifar10_ddpm network=ddpm data=arrays data.path=LEVELS trainer.accelerator=cpu trainer.max_steps=9 "
    "network.channels=8 network.blocks=1 network.feature_dim=8 network.embedding_dim=8 network.channel_mult=[1,1] network.attention=[1]",
    "experiment cifar10_vp_ddpmpp": "experiment=cifar10_vp_ddpmpp network=ddpmpp data=arrays data.path=LEVELS trainer.accelerator=cpu trainer.max_steps=9 "
    "network.channels=8 network.blocks=1 network.feature_dim=8 network.embedding_dim=8 network.channel_mult=[1,1] network.attention=[1]",
    "experiment cifar10_subvp_ddpmpp": "experiment=cifar10_subvp_ddpmpp network=ddpmpp data=arrays data.path=LEVELS trainer.accelerator=cpu trainer.max_steps=9 "
    "network.channels=8 network.blocks=1 network.feature_dim=8 network.embedding_dim=8 network.channel_mult=[1,1] network.attention=[1]",
    "experiment cifar10_ve_ncsnpp": "experiment=cifar10_ve_ncsnpp network=ncsnpp data=arrays data.path=LEVELS trainer.accelerator=cpu trainer.max_steps=9 "
    "network.channels=8 network.blocks=1 network.feature_dim=8 network.embedding_dim=8 network.channel_mult=[1,1] network.attention=[1]",
    "experiment cifar10_edm": "experiment=cifar10_edm network=edm_ddpmpp data=arrays data.path=LEVELS trainer.accelerator=cpu trainer.max_steps=9 "
    "network.channels=8 network.blocks=1 network.feature_dim=8 network.embedding_dim=8 network.channel_mult=[1,1] network.attention=[1] network.stem_channels=8",
    "experiment cifar10_10min": "experiment=cifar10_10min network=ddpm data=arrays data.path=LEVELS trainer.accelerator=cpu trainer.max_steps=9 "
    "network.channels=8 network.blocks=1 network.feature_dim=8 network.embedding_dim=8 network.channel_mult=[1,1] network.attention=[1] model.compile=false",
    "experiment mnist_cpu": "experiment=mnist_cpu data.root=IDX data.n_val=10 network=mlp trainer.max_steps=9",
    "experiment cifar10_cpu": "experiment=cifar10_cpu data=arrays data.path=LEVELS trainer.max_steps=9 network=unet_small network.channels=8",
    "experiment cifar10_small": "experiment=cifar10_small data=arrays data.path=LEVELS trainer.max_steps=9 network=unet_small network.channels=8 "
    "network.embedding_dim=8",
    "experiment cifar10_upsampler": "experiment=cifar10_upsampler data=arrays data.path=LEVELS network=mlp trainer.max_steps=9",
    "experiment text_to_image": "experiment=text_to_image data.root=IDX data.n_val=10 network=unet_small network.channels=8 "
    "first_stage.ckpt=CONVVAE trainer.max_steps=9",
}

GRID = "sampler.grid={_target_:sde_diffusion.sde.KarrasRho} sampler.denoise=false sampler.t_end=0.01"
SAMPLERS = {
    "ode": f"sampler.method=adams sampler.rtol=1e-3 sampler.atol=1e-3 sampler.max_nfe=2000 sampler.options={{order:3}} "
    f"sampler.coordinate={{_target_:sde_diffusion.sampling.UnitVariance}} {GRID}",
    "ode in steps": f"sampler=ode sampler.method=rk4 sampler.steps=4 {GRID}",
    "sde": f"sampler.method=srk sampler.steps=6 sampler.eta=0.5 sampler.one_path=true "
    f"sampler.coordinate=unit_variance {GRID}",
    "sde, options": f"sampler=sde sampler.method=milstein sampler.steps=6 sampler.options={{grad_free:true}} {GRID}",
    "sde, adaptive": f"sampler=sde sampler.adaptive=true sampler.rtol=0.3 sampler.atol=0.3 sampler.max_nfe=3000 "
    f"sampler.steps=20 {GRID}",
    "ddpm": f"sampler.steps=6 sampler.eta=0.9 {GRID}",
    "ddpm50": f"sampler.steps=6 sampler.eta=0.8 {GRID}",
    "ddim": f"sampler.steps=6 sampler.eta=0.1 {GRID}",
    "pc": f"sampler.predictor=ancestral sampler.corrector=langevin sampler.steps=4 sampler.snr=0.1 "
    f"sampler.corrector_steps=2 {GRID}",
    "langevin": f"sampler.levels=4 sampler.steps_per_level=2 sampler.step_size=1e-6 {GRID}",
    "heun": f"sampler.steps=4 sampler.churn=1 sampler.churn_min=0.1 sampler.churn_max=10 sampler.churn_noise=1.01 {GRID}",
    "dpm": f"sampler.steps=6 sampler.order=3 sampler.singlestep=true sampler.singlestep_start=true sampler.eta=0.2 {GRID}",
    "unipc": f"sampler.steps=6 sampler.order=3 {GRID}",
    "deis": f"sampler.steps=6 sampler.order=2 {GRID}",
}
SAMPLE = "upsampler.ckpt=null upsampler.noise=0.2 n=5 edit.path=ROWS edit.strength=0.6 conditions=null seed=2 film=2 batch_size=3 device=cpu compile=true overwrite=true sampler=ddpm sampler.steps=3"
RESTORE = {
    "mask": "operator=mask operator.path=null operator.part=center operator.coordinates=null operator.invert=true "
    "posterior=mmps posterior.iterations=2 images=null y=null split=test items=3 noise=0.1 n=2 seed=3 evidence=false "
    "conditions=null data.root=null data.path=null batch_size=3 device=cpu overwrite=true sampler=ddim sampler.steps=3",
    "downsample": "operator=downsample operator.factor=2 operator.method=bicubic posterior=ddnm "
    "posterior.sigma_data=null sampler.steps=3",
    "blur": "operator=blur operator.std=0.7 operator.boundary=reflect posterior=tmpd sampler.steps=3",
    "grey": "operator=grey operator.weights=[0.5] posterior=jacobian_free posterior.sigma_data=0.5 noise=0 compile=true "
    "sampler.steps=3",
    "by pseudo-inverse": "operator=blur operator.std=0.7 posterior=pigdm posterior.sigma_data=0.5 sampler.steps=3",
    "by points": "operator=blur operator.std=0.7 posterior=dps posterior.scale=0.1 sampler.steps=3",
    "linear, by particles": "operator=linear operator.path=MATRIX posterior=smc posterior.steps=3 posterior.particles=2 "
    "posterior.likelihood.sigma_data=0.5 evidence=true "
    f"{GRID.replace('sampler.', 'posterior.')}",
    "by repainting": "operator=mask operator.coordinates=[0] posterior=repaint posterior.steps=4 posterior.jump=2 "
    f"posterior.resamples=2 {GRID.replace('sampler.', 'posterior.')}",
    "by replacement": "operator=grey operator.weights=[1] posterior=replacement posterior.sampler.steps=3 "
    "posterior.sampler.eta=0.5",
}
LIKELIHOOD = {
    "most": "split=[train,test] conditions=null n=6 method=dopri5 rtol=1e-3 atol=1e-3 max_nfe=3000 trace=hutch++ probes=3 prior=matched "
    "grid={_target_:sde_diffusion.sde.BandLogSNR} elbo.grid={_target_:sde_diffusion.sde.UniformLogSNR} "
    "elbo.steps=20 elbo.draws=5 elbo.decoder=uniform elbo.t_end=0.01 target_se=0.001 against=noise seed=3 batch_size=3 "
    "device=cpu overwrite=true",
    "importance": "importance=2 elbo.steps=3 elbo.draws=null elbo.decoder=dequantised rtol=1e-2 n=2",
    "steps and draws": "n=2 method=rk4 steps=4 trace=exact draws=2 elbo=null",
    "other data": "against=mnist against_root=IDX n=2 elbo=null data.root=null",
    "other arrays": "against=arrays against_path=LEVELS n=2 elbo=null data.path=null",
    "own labels": "label=own n=2 elbo=null",
    "own rows": "x=ROWS elbo=null compile=true",
    "other samples": "data=digits n=2 elbo=null",
}
AUTOENCODER = {
    "sample": "decode=draw latents=true n=3",
    "evaluate": "decode=draw n=40 metrics=[kernel]",
    "likelihood": "importance=2 draws=2 bound={rows:8} n=4",
}
METRICS = "prdc.k=2 prdc.k_density=4 sliced_wasserstein.projections=8 frechet.keep_features=true"
EVALUATE = {
    "most": "n=200 conditions=null seed=1 split=val extractor=pca8 confidence=0.9 resamples=8 reference=fixed cache=CACHE batch_size=64 "
    "device=cpu overwrite=true sampler=ddpm sampler.steps=3 data.root=null data.path=null "
    + " ".join(f"metrics.{setting}" for setting in METRICS.split()),
    "some metrics": "n=60 compile=true sampler=ddpm sampler.steps=3 metrics=[kernel,energy,inception_score,memorisation]",
    "pictures": "samples=IMAGES resize=true data=digits metrics=[kernel]",
    "reconstructions": "of=reconstructions",
    "two models": "against=CKPT n=60 sampler=ddpm sampler.steps=3 metrics=[kernel]",
    "a class": "label=3 n=40 sampler=ddpm sampler.steps=3 metrics=[kernel]",
}
NFE_FID = (
    "exact=true nfe=[3] long=5 seeds=[0,150] n=150 split=test extractor=pca8 confidence=0.9 batch_size=64 device=cpu "
)
NFE_FID += (
    "tune=false tuning.samplers=[ddim] tuning.nfe=[3] tuning.n=9 tuning.seed=1000 tuning.target=7 "
    "overwrite=true wandb=null conditions=null data.root=null data.path=null samplers={ddim:{each:1,extra:0,sampler:"
)
NFE_FID += "{_target_:sde_diffusion.sampling.AncestralSampler}}}"
GUIDANCE = (  # in tests/commands/test_guidance_benchmark.py
    "classifier=null unconditional=null scales=[1,3] intervals=[null,[0.5,2]] n=140 seed=0 split=test extractor=digits "
    "confidence=0.9 data.root=null data.path=null batch_size=50 device=cpu overwrite=true sampler=dpm sampler.steps=3"
)
SWEEP = "file=grid n=1 seed=1"

EXEMPT = {
    "trainer.check_val_every_n_epoch",  # validations are counted in steps
    "trainer.use_distributed_sampler",  # must stay false: the data modules share out their batches themselves
    "network.shape",  # filled in from the data
    "data.captions",  # what the choice of captions= is
    "denoiser.sde",
    "denoiser.network",  # groups of their own
    "denoiser.prediction",  # what the choice of the file is
    "callbacks.best.filename",  # of Lightning's checkpoint callback, as other commands expect them
    "callbacks.best.auto_insert_metric_name",
    "callbacks.best.enable_version_counter",
    "callbacks.best.monitor",
    "callbacks.best.dirpath",  # the run's folder, which hydra.run.dir sets
    "callbacks.last.folder",
    "callbacks.schedule.folder",
    "callbacks.samples.folder",
    "callbacks.noise_levels.folder",
    "logger.csv.folder",
    "logger.wandb.folder",
    "logger.none",
    "ckpt",  # given to every command but train; resuming has tests of its own
    "out",
    "cuda_graphs",  # needs a GPU; in tests/test_gpu.py
}
"""What is not set here, and why."""
