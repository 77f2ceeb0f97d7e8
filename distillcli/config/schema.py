"""The schema: every key a user can set, with its type and default.

The dataclasses are the first entry of every primary config, so that Hydra checks names and types of everything merged
on top. Ranges and cross-checks live in :mod:`distillcli.config.checks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from omegaconf import MISSING

# OmegaConf reads these annotations at run time and, on Python 3.10, understands Optional[...] but not every X | None.
# ruff: noqa: UP045


@dataclass
class ModelConfig:
    """A timm model and where its weights come from."""

    name: str = MISSING  # a timm model name, or local-dir:PATH / hf-hub:USER/MODEL
    pretrained: bool = False  # start from timm's published weights
    checkpoint: Optional[str] = None  # your weights: run folder, checkpoint file, .safetensors, exported student/
    args: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model, e.g. drop_path_rate
    image_size: Optional[int] = None  # pixels; the model resizes the views to this; null: dataset.image_size
    freeze: str = "none"  # layers not trained: none | backbone (all but the classifier) | the first N layer groups


@dataclass
class FitConfig:
    """How a teacher that has no weights for this data set is trained on the labels."""

    mode: str = "auto"  # auto: train if no weights match the data set | never | always
    epochs: int = 10
    lr: float = 1e-3
    weight_decay: float = 0.05
    layer_decay: Optional[float] = None  # as optimizer.layer_decay


@dataclass
class CacheConfig:
    """Cached teacher outputs, which later runs with the same views reuse."""

    mode: str = "auto"  # auto: the best format that fits in max_gb | off | float16 | float32 | int8 | topk
    views: int = 0  # repeat this many views of every image in turn; 0: a new view every epoch
    max_gb: float = 4.0
    dir: Optional[str] = None  # null: RUNS/cache


@dataclass
class MemberConfig(ModelConfig):
    """One teacher of an ensemble; it is trained, or found, as a single teacher would be."""

    class_map: Optional[str] = None  # file with lines "class of the data set,class of the member"; null: same names
    classes: Optional[str] = None  # as teacher.classes
    weight: float = 1.0
    temperature: float = 1.0  # divides its logits before they are averaged
    seed: Optional[int] = None  # of its training; null: the seed of the run. Members of one model need different seeds


@dataclass
class AssistantConfig(ModelConfig):
    """A teacher assistant: it learns from the teacher or the assistant before it, and teaches the next model."""

    seed: Optional[int] = None  # null: the seed of the run


@dataclass
class TeacherConfig(ModelConfig):
    class_map: Optional[str] = None  # file with lines "class of the data set,class of the teacher"; null: same names
    classes: Optional[str] = None  # names for the outputs of a checkpoint that has none, in order: one a line, or JSON
    trust: bool = False  # true: go on with a given teacher whose answers are not those of the labels
    head: bool = True  # false: a feature extractor, which gives an embedding and stages; it is never trained
    precision: str = "auto"  # auto | fp32 | bf16 | fp16, for its forward pass and its training
    members: list[MemberConfig] = field(default_factory=list)  # an ensemble, instead of name and checkpoint
    average: str = "probabilities"  # what is averaged over the members: probabilities | logits
    assistants: list[AssistantConfig] = field(default_factory=list)  # in order, each teaching the next
    mean: bool = False  # mean teacher: the moving average of the student's weights (trainer.ema) teaches it
    fit: FitConfig = field(default_factory=FitConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass
class StudentConfig(ModelConfig):
    pass


@dataclass
class DatasetConfig:
    name: str = MISSING  # digits | folder | fake | a torchvision set ... (distill show datasets)
    root: Optional[str] = None  # the folder or file of images, or the folder of a torchvision set
    labels: Optional[str] = None  # folder, archive: CSV, TSV or JSONL with the columns file, label and perhaps split
    class_map: Optional[str] = None  # folder, archive, webdataset: CSV, TSV, JSON or text with lines FOLDER,CLASS
    path: Optional[str] = None  # hf only: a name on the hub, a parquet or arrow file, or a folder of them
    image_column: Optional[str] = None  # hf only; null: the only column of images
    label_column: Optional[str] = None  # hf only; null: the only column of class labels, or the one called label
    on_error: str = "raise"  # an image that cannot be decoded: raise | skip (decodes every image once to find out)
    download: bool = False  # let torchvision download the data set into root
    image_size: int = 224  # height and width of every view in pixels
    channels: int = 3  # 1: grayscale; 3: RGB; other numbers: npz only, as in its arrays
    crop_fraction: float = 1.0  # fraction of the shorter side that the centre crop of evaluation keeps
    val_fraction: float = 0.1  # share of train held out where the data has no val part; 0: none, nor a best epoch
    labelled: float = 1.0  # fraction of the training labels that are kept, in each class; 0: none
    label_noise: float = 0.0  # share of the training labels replaced by another class, all equally likely
    split_seed: int = (
        0  # seed of that split, of the labels kept and of their noise: part of the data set, not of the run
    )
    balanced: bool = False  # show every class equally often, whatever its number of images
    memory_gb: float = 4.0  # keep decoded images in memory up to this size, stream them beyond it
    classes: int = 10  # fake only: number of classes
    samples: int = 512  # fake only: number of training images


@dataclass
class DistillConfig:
    """loss = (1 - alpha) * sum of label terms + alpha * sum of teacher terms; alpha null: a plain weighted sum."""

    name: str = MISSING
    temperature: float = 4.0
    temperature_end: Optional[float] = None  # reached linearly by the end of the run; null: constant
    alpha: Optional[float] = 0.9
    terms: dict[str, dict[str, Any]] = field(default_factory=dict)  # term name -> its options (distill show terms)


@dataclass
class OptimizerConfig:
    name: str = MISSING  # any timm optimizer
    lr: float = 1e-3
    weight_decay: float = 0.05
    layer_decay: Optional[float] = None  # factor on lr per layer, from the classifier back to the input, e.g. 0.75
    momentum: float = 0.9  # for the optimizers that use it
    args: dict[str, Any] = field(default_factory=dict)  # further arguments of timm's create_optimizer_v2


@dataclass
class ScheduleConfig:
    """timm's learning-rate schedules, stepped once per optimizer step."""

    name: str = MISSING  # cosine | step | multistep | poly | tanh | wsd | constant
    warmup_epochs: float = 0.0
    warmup_lr: float = 1e-5
    min_lr: float = 0.0
    decay_epochs: float = 30.0  # step: epochs between decays; wsd: length of the decay phase
    decay_rate: float = 0.1  # step, multistep: factor of a decay; poly: the power, usually 1 or 2
    milestones: list[int] = field(default_factory=list)  # multistep: the epochs at which lr decays


@dataclass
class AugmentConfig:
    """A recipe of random views. Ranges are symmetric unless given as [low, high]; 0 and [1, 1] turn a part off."""

    name: str = MISSING
    flip: float = 0.0  # probability of a horizontal flip
    crop_area: list[float] = field(default_factory=lambda: [1.0, 1.0])  # fraction of the image area that a crop keeps
    crop_ratio: list[float] = field(default_factory=lambda: [0.75, 1.3333])  # width / height of that crop
    pad: float = 0.0  # shift by up to this fraction in whole pixels, all equally likely: RandomCrop of a padded image
    translate: float = 0.0  # shift, as a fraction of the view's width, rounded to whole pixels
    rotate: float = 0.0  # degrees
    shear: float = 0.0  # degrees
    zoom: list[float] = field(default_factory=lambda: [1.0, 1.0])  # magnification of the content
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # fraction of the colour circle, up to 0.5
    policy: str = "none"  # none | randaugment | trivial | autoaugment_cifar, after crop, flip and colours
    policy_ops: int = 2  # randaugment: operations in a row
    policy_magnitude: float = 9.0  # randaugment: strength, 0 to 30
    erase: float = 0.0  # probability of blanking a random rectangle
    mixup: float = 0.0  # alpha of Beta(alpha, alpha), the weight of the image blended into the view; 1: uniform
    cutmix: float = 0.0  # the same for the fraction of the area where another image is pasted
    repeats: int = 1  # views of each image in a batch; an epoch then shows fewer images in as many steps
    mix_probability: float = 1.0  # fraction of the views that are mixed, given mixup or cutmix


@dataclass
class TrainerConfig:
    epochs: int = 10
    batch_size: int = 64  # images per optimizer step, over all ranks
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps
    precision: str = "auto"  # auto | fp32 | bf16 | fp16; auto is bf16 on GPUs that have it and fp32 elsewhere
    channels_last: Optional[bool] = True  # memory layout; null: whichever is faster, measured once per model and device
    compile: bool = False  # torch.compile the student; on a GPU also a live teacher, both replayed as CUDA graphs
    ema: Optional[float] = None  # decay of an exponential moving average of the weights, e.g. 0.9998
    accumulate: int = 1  # micro-batches per optimizer step
    clip_grad: Optional[float] = None  # maximum norm of the gradient
    progressive: Optional[list[float]] = None  # [fraction of image_size in epoch 1, fraction of epochs until full size]
    workers: int = 0  # loader processes, for images that are streamed
    threads: Optional[int] = None  # torch's CPU threads; null: as many as this process may use
    checkpoint_minutes: float = 10.0  # save within an epoch too, this often
    select: str = "last"  # last | best: the epoch that becomes the student; best is chosen on val
    keep_optimizer: bool = False  # keep the optimizer's state in last.pt after the last epoch


@dataclass
class RunConfig:
    """The keys of every command that leaves a run folder."""

    name: str = "distill"
    seed: int = 0
    runs: str = "runs"  # the folder of runs, sweeps, trained teachers and caches
    out: Optional[str] = None  # the run folder, instead of RUNS/NAME/TIMESTAMP
    resume: Optional[str] = None  # a run folder to continue


@dataclass
class TrainConfig(RunConfig):
    baseline: bool = True  # train the control: same student, same budget, no teacher
    generations: int = 1  # born-again: this many students in a row, each teaching the next
    peers: list[ModelConfig] = field(default_factory=list)  # mutual learning: models trained beside the student
    probe: Optional[bool] = None  # measure embeddings by k-NN and a linear probe; null: if no term uses labels
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass
class EvalConfig:
    checkpoint: Optional[str] = None  # run folder, RUNS/NAME/latest, checkpoint file, exported student/, timm name
    model: Optional[str] = None  # the timm model of a checkpoint that does not name its own
    format: str = "table"  # table | json
    dataset: Optional[DatasetConfig] = None  # null: the run's own data set
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass
class PredictConfig:
    checkpoint: Optional[str] = None  # run folder, its student/ or a checkpoint in it, FILE.onnx, FILE.xml
    input: Optional[str] = None  # an image, a folder (with all below it), a glob, or -: paths from stdin, one a line
    format: str = "table"  # table | jsonl | csv
    topk: int = 5  # classes named for each image, the most likely first
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass
class ExportConfig:
    checkpoint: Optional[str] = None  # run folder, RUNS/NAME/latest, checkpoint file, exported student/
    model: Optional[str] = None  # the timm model of a checkpoint that does not name its own
    format: str = "onnx"  # timm | onnx | torch | openvino
    epoch: Optional[str] = None  # last | best: that checkpoint of the run; null: the student that the run exported
    out: Optional[str] = (
        None  # the file, or the folder of format=timm; null: RUN/exports/MODEL with the format's ending
    )
    preprocess: bool = (
        False  # take uint8 images, B x H x W x C, and normalise them inside; false: B x C x H x W, normalised
    )
    softmax: bool = False  # answer with calibrated probabilities: softmax at the temperature that fits val best
    dataset: Optional[DatasetConfig] = None  # null: the run's own data set
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
