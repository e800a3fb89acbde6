"""A name or a file -> an OpenAI CLIP; and `Towers`, the one view of it that the methods use."""
import contextlib
import copy
import hashlib
import os
import tempfile
import warnings

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prompting.errors import PromptingError
from prompting.image import ImageTower
from prompting.openai import openai_clip
from prompting.passes import Passes
from prompting.ranks import Ranks
from prompting.templates import fill
from prompting.text import TextTower

CACHE = "~/.cache/clip"
VOCABULARY = 49408
SHIPPED = {"tiny": os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets", "tiny_clip.safetensors")}
HEAD = 64  # channels of an attention head in every CLIP of OpenAI's; a state dict does not say how many heads there are
ACTIVATION = "QuickGELU"  # what `blocks.Block` computes
_DIGESTS = {}  # (disk, file, size, times of the last change): SHA-256
MOST_DIGESTS = 1000


def load_clip(name, cache=CACHE):
    """An OpenAI `clip` model in float32, frozen, in eval mode, on the CPU.

    Args:
        name: "tiny", the small CLIP of drawings that comes with this project; one of `clip.available_models()`
            ("ViT-B/16", "RN50", ...), downloaded once into `cache` and checked against its published SHA-256; or a
            .pt or .safetensors file in OpenAI's state-dict naming, of any ViT or ResNet size.
        cache: folder of the downloaded files.
    Returns:
        `clip.model.CLIP`; its attribute `weights_digest` is what `weights_digest(name)` gives.
    Raises:
        PromptingError: unknown name, no such file, not a CLIP state dict, a tower whose heads cannot be 64 wide, or a
            download that failed.
    """
    if not name:
        raise PromptingError("no backbone is named; give --backbone or MODEL.BACKBONE.NAME, "
                             f"one of {', '.join(known_names())} or a weights file")
    cache = os.path.expanduser(cache)
    if name in SHIPPED:
        state_dict = whole_vocabulary(_from_file(SHIPPED[name], cache))
    else:
        published = name in _published_urls() and not os.path.isfile(name)
        state_dict = _download(name, cache) if published else _from_file(name, cache)
    model = _build(state_dict, name)
    model.weights_digest = weights_digest(name)
    return model


def known_names():
    """Names that `load_clip` takes besides files."""
    return [*SHIPPED, *_published_urls()]


# ---- which weights these are ----
def weights_digest(name):
    """SHA-256 of a backbone's weights, by content: the same file at another path has the same digest, and so have one
    of OpenAI's files and its published name (whose digest is known without a download). None where nothing is known.

    Args:
        name: what `load_clip` takes.
    """
    if os.path.isfile(SHIPPED.get(name, name)):
        return _sha256(SHIPPED.get(name, name))
    url = _published_urls().get(name)
    return url.split("/")[-2] if url else None


def describe_backbone(model, name=""):
    """What is known of a CLIP that is computed with.

    Args:
        model: `clip.model.CLIP`; one that `load_clip` did not load is known by its tensors.
        name: what it is called.
    Returns:
        {"name", "digest" (SHA-256), "published" (whether the weights are OpenAI's), "activation", "heads": {"text",
        "image"}}.
    """
    digest = getattr(model, "weights_digest", None) or _tensors_digest(model)
    first = model.transformer.resblocks[0]
    visual = getattr(model.visual, "transformer", None)
    image = visual.resblocks[0].attn.num_heads if visual is not None else model.visual.attnpool.num_heads
    return _facts(name, digest, ACTIVATION, {"text": first.attn.num_heads, "image": image})


def describe_weights(name, cache=CACHE):
    """As `describe_backbone`, of a name or a file that other code loads with OpenAI's `clip`; what is not known of it
    (published weights are not opened, a file may hold another kind of model) is None.

    Raises:
        PromptingError: a tower whose heads cannot be 64 wide."""
    digest, widths = weights_digest(name), None
    if os.path.isfile(SHIPPED.get(name, name)):
        with contextlib.suppress(PromptingError):
            widths = tower_widths(_from_file(SHIPPED.get(name, name), os.path.expanduser(cache)))
    if not widths:
        return _facts(name, digest, None, None)
    _require_whole_heads(widths, name)
    return _facts(name, digest, ACTIVATION, {tower: width // HEAD for tower, width in widths.items()})


def _facts(name, digest, activation, heads):
    return {"name": name, "digest": digest, "published": digest in _published_digests(), "activation": activation,
            "heads": heads}


def unpublished_note(facts):
    """One line on how weights that are not OpenAI's are computed; "" where there is nothing to say.

    Args:
        facts: what `describe_backbone` or `describe_weights` gave.
    """
    if facts["published"] or not facts["heads"] or facts["name"] in SHIPPED or not os.path.isfile(facts["name"]):
        return ""
    heads = facts["heads"]
    return (f"Backbone {facts['name']} is not one of OpenAI's: computed with {facts['activation']}, {heads['text']} "
            f"text and {heads['image']} image heads ({HEAD} wide); weights that were trained with another activation "
            "or other heads give wrong numbers")


def tower_widths(state_dict):
    """{"text", "image"}: channels that attention divides into heads; {} for a state dict of another kind."""
    def size(key):
        tensor = state_dict.get(key) if isinstance(state_dict, dict) else None
        return tensor.shape[0] if torch.is_tensor(tensor) and tensor.dim() else 0

    text = size("ln_final.weight")
    image = size("visual.conv1.weight") if size("visual.proj") else 32 * size("visual.layer1.0.conv1.weight")
    return {"text": text, "image": image} if text and image else {}


def _require_whole_heads(widths, name):
    for tower, width in widths.items():
        if width % HEAD:
            raise PromptingError(f"backbone {name}: its {tower} tower is {width} wide, which cannot be divided into "
                                 f"heads of {HEAD}, and a state dict does not say how many heads it was trained with; "
                                 f"use weights whose width is a multiple of {HEAD}")


def whole_vocabulary(state_dict):
    """The state dict of a CLIP that is stored with its trained token vectors only.

    `token_embedding.rows` (n,) says which tokens `token_embedding.values` (n, W) are; every other token gets a small
    vector of its own, drawn with a fixed seed, so that any sentence has features."""
    state_dict = {k: v.float() if v.is_floating_point() else v for k, v in state_dict.items()}
    rows, values = state_dict.pop("token_embedding.rows"), state_dict.pop("token_embedding.values")
    draws = np.random.RandomState(0).randint(-32768, 32768, (VOCABULARY, values.shape[1]))
    weight = torch.from_numpy(draws.astype(np.float32)) * (0.035 / 32768)
    weight[rows] = values
    return {**state_dict, "token_embedding.weight": weight}


def serve_foreign_code(name="", cache=CACHE):
    """Let code written for OpenAI's own repository load its CLIP: `clip._download(url)` without a folder uses the
    default one, and a weights file, or the CLIP that comes along, is found in `clip._MODELS` under its `name`."""
    clip = openai_clip()
    original = getattr(clip._download, "original", clip._download)
    files = getattr(clip._download, "files", {})

    def download(url, root=None):
        return files.get(url) or original(url, root or os.path.expanduser(cache))

    download.original, download.files = original, files
    clip._download = download
    if name in SHIPPED:
        files[name] = _whole_file(SHIPPED[name], os.path.expanduser(cache))
    elif os.path.isfile(name):
        files[name] = name
    if name in files:
        clip._MODELS[name] = name


def _whole_file(shipped, cache):
    """A shipped CLIP, which is stored without its untrained tokens, as a state dict that any code can load."""
    path = os.path.join(cache, f"{_sha256(shipped)}.pt")
    if not os.path.isfile(path):
        with _whole(path) as unfinished:
            torch.save(whole_vocabulary(_from_file(shipped, cache)), unfinished)
    return path


@contextlib.contextmanager
def _whole(path):
    """Yields a name to write a file under, which becomes `path` at the end. It lies in a folder of this process's own:
    the cache may be many people's, and a link planted in it would lead what is written elsewhere."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=os.path.dirname(path)) as folder:
        yield os.path.join(folder, os.path.basename(path))
        os.replace(os.path.join(folder, os.path.basename(path)), path)


def _published_urls():
    """{name: address} of OpenAI's models; the last folder of an address is the file's SHA-256."""
    return {name: url for name, url in openai_clip()._MODELS.items() if "://" in url}


def _published_digests():
    return {url.split("/")[-2] for url in _published_urls().values()}


def _download(name, cache):
    """The tensors of one of OpenAI's models."""
    url = _published_urls()[name]
    if os.path.isfile(_converted(url.split("/")[-2], cache)):
        return _from_file(_converted(url.split("/")[-2], cache), cache)
    try:
        archive = openai_clip()._download(url, cache)
    except (OSError, RuntimeError) as error:
        raise PromptingError(f"cannot download the CLIP weights {name} from {url} ({error}); put the file into {cache} "
                             "yourself, or name a weights file as the backbone") from None
    return _from_archive(archive, url.split("/")[-2], cache)


def _converted(digest, cache):
    """Where the tensors of a published archive are kept as safetensors."""
    return os.path.join(cache, f"{digest}.safetensors")


def _from_archive(path, digest, cache):
    """Tensors of a TorchScript archive, kept for the next time.

    Loading one can run code: call it for files of published SHA-256 only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is on its way out, OpenAI's files stay what they are
        state_dict = torch.jit.load(path, map_location="cpu").state_dict()
    # a folder that cannot be written is slower next time, no more
    with contextlib.suppress(OSError), _whole(_converted(digest, cache)) as unfinished:
        save_file({k: v.contiguous().clone() for k, v in state_dict.items()}, unfinished)
    return state_dict


def _from_file(path, cache):
    """Tensors of a weights file; nothing pickled is executed."""
    if not os.path.isfile(path):
        raise PromptingError(f"backbone '{path}' is neither a file nor one of {', '.join(known_names())}")
    if path.endswith(".safetensors"):
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise PromptingError(f"backbone {path} is not a whole safetensors file ({error}); fetch it again") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a TorchScript archive is dealt with below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        digest = _sha256(path)
        if digest in _published_digests():
            if os.path.isfile(_converted(digest, cache)):
                return _from_file(_converted(digest, cache), cache)
            return _from_archive(path, digest, cache)
        raise PromptingError(f"backbone {path} is not a CLIP state dict that can be loaded without running code "
                             f"({_first_line(error)}); give a .safetensors file, a saved state dict, or one of "
                             "OpenAI's own files") from None
    return loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded


def _first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def _sha256(path):
    """Of a file, remembered until it changes."""
    status = os.stat(path)
    key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    found = _DIGESTS.get(key)
    if found is None:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        if len(_DIGESTS) >= MOST_DIGESTS:
            _DIGESTS.clear()
        found = _DIGESTS[key] = digest.hexdigest()
    return found


def _tensors_digest(model):
    """Of a module's tensors and their names, as float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _build(state_dict, name):
    """`clip.model.CLIP` with exactly these tensors, in float32."""
    needed = ("text_projection", "positional_embedding", "token_embedding.weight", "ln_final.weight", "logit_scale")
    if not isinstance(state_dict, dict) or not all(isinstance(k, str) and torch.is_tensor(v)
                                                   for k, v in state_dict.items()):
        raise PromptingError(f"backbone {name} does not hold a state dict of tensors")
    missing = [key for key in needed if key not in state_dict]
    if missing:
        raise PromptingError(f"backbone {name} is not a CLIP state dict in OpenAI's naming (it lacks {missing[0]})")
    _require_whole_heads(tower_widths(state_dict), name)
    tokens = tuple(state_dict["token_embedding.weight"].shape)
    if tokens[:1] != (VOCABULARY,):
        raise PromptingError(f"backbone {name} has token vectors of shape {tokens}; CLIP's vocabulary has {VOCABULARY} "
                             "tokens, and with another one every text would be read wrongly")
    try:
        model = openai_clip().build_model(dict(state_dict)).float()
        # build_model rounds to half precision on the way in; take the tensors as they are instead.
        model.load_state_dict({k: v for k, v in state_dict.items()
                               if k not in ("input_resolution", "context_length", "vocab_size")})
    except (LookupError, AssertionError, RuntimeError, ArithmeticError, ValueError, TypeError) as error:
        raise PromptingError(f"backbone {name} is not a CLIP state dict of a size this program knows "
                             f"({_first_line(error)})") from None
    return model.eval().requires_grad_(False)


def _require_known_activation(model):
    for tower in (model, model.visual):
        for block in getattr(getattr(tower, "transformer", None), "resblocks", ()):
            name = type(block.mlp[1]).__name__
            if name != ACTIVATION:
                raise PromptingError(f"the CLIP that was handed in has {name} in its blocks, which are computed with "
                                     f"{ACTIVATION} here: its numbers would be wrong; hand in OpenAI's kind of CLIP")


class Towers:
    """What a method sees of a CLIP: promptable towers, the logit scale, frozen features.

    The model that is handed in is never changed: it is copied unless it already is frozen, on the device and of the
    right type. Nothing here is a registered submodule, so the parameters and the state dict of a method's module are
    what it learns and nothing else.

    Args:
        model: `clip.model.CLIP`.
        device: where to run.
        half: frozen weights in float16 (PREC fp16).
        ranks: the processes that divide the towers' work; by default this one alone.
    Raises:
        PromptingError: a block has another activation than QuickGELU.
    Attributes:
        text: TextTower; image: ImageTower, or None for a ResNet; resolution, embed_dim; logit_scale: float;
        passes: Passes, how much went through both.
    """

    def __init__(self, model, device="cpu", half=False, ranks=None):
        _require_known_activation(model)
        device, self.ranks = torch.device(device), ranks or Ranks()
        wanted = torch.float16 if half else torch.float32
        weight = model.text_projection
        if (weight.device.type != device.type or weight.dtype != wanted or model.training
                or any(p.requires_grad for p in model.parameters())):
            model = copy.deepcopy(model).requires_grad_(False).float().eval().to(device)
            if half:
                from clip.model import convert_weights

                convert_weights(model)
        self.model, self.device = model, device
        self.passes = Passes()
        self.text = TextTower(model, self.ranks, self.passes)
        self.image = ImageTower(model, self.ranks, self.passes) if hasattr(model.visual, "transformer") else None
        self.resolution = model.visual.input_resolution
        self.embed_dim = self.text.embed_dim
        self.logit_scale = model.logit_scale.exp().item()

    def promptable_image(self, method):
        """The ImageTower. Raises PromptingError for a ResNet, which has no token sequence to prompt."""
        if self.image is None:
            raise PromptingError(f"{method} prompts the image tower and needs a ViT backbone (ViT-B/16, ViT-B/32, "
                                 "ViT-L/14), not a ResNet")
        return self.image

    def encode_image(self, images):
        """Images (B, 3, H, W') -> frozen features (B, E), not normalised."""
        if self.image is not None:
            return self.image.encode_plain(images)
        self.passes.add(images=len(images))
        return self.ranks.divide(len(images), lambda rows: self.model.visual(images[rows].to(self.model.dtype)))

    @torch.no_grad()
    def frozen_text(self, classnames, templates):
        """Text features of the frozen CLIP, (len(classnames), E) float32, of length 1.

        Each template's feature is normalised, the mean over the templates is normalised again (CLIP, section 3.1.4).
        """
        total = 0
        for template in templates:
            total = total + normalize(self.text.encode_texts([fill(template, name) for name in classnames]))
        return normalize(total / len(templates))

    def cosine_logits(self, image_features, text_features):
        """(B, E) and (C, E), of any length -> exp(logit_scale) * cosine, (B, C) float32."""
        return self.logit_scale * normalize(image_features) @ normalize(text_features).transpose(-1, -2)


def normalize(features):
    """To length 1 along the last dimension, in float32."""
    features = features.float()
    return features / features.norm(dim=-1, keepdim=True)
