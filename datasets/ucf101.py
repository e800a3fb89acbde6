import os
import re

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import InputError
from datasets.base import SplitDataset
from datasets.files import how_to_get, read_lines, require_images
from datasets.splits import split_trainval


@DATASET_REGISTRY.register()
class UCF101(SplitDataset):
    """UCF101 (Soomro et al., 2012, arXiv 1212.0402), the middle frame of each video: 101 actions; CoOp's split has
    7,639 training, 1,898 validation and 3,783 test images.

    Layout: `ucf101/UCF-101-midframes/<Class_Name>/<video>.jpg` and `ucf101/split_zhou_UCF101.json`. A split that is
    drawn here needs the published lists `ucf101/ucfTrainTestlist/{classInd,trainlist01,testlist01}.txt` and keeps that
    test list.
    """

    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    fixed_test = True
    hint = how_to_get("ucf101", "https://www.crcv.ucf.edu/data/UCF101.php")

    def draw(self):
        path = os.path.join(self.folder, "ucfTrainTestlist", "classInd.txt")
        self.labels: dict[str, int] = {}
        for number, line in read_lines(path, self.hint):
            label, _, action = line.partition(" ")
            known = re.fullmatch(r"[0-9]{1,9}", label)
            if not known or self.labels.setdefault(action, int(label) - 1) != int(label) - 1:
                raise InputError(f"{path}, line {number}: expected 'label class', each class once, found '{line[:60]}'")
        parts = [*split_trainval(self.read_list("trainlist01.txt")), self.read_list("testlist01.txt")]
        require_images(self.labels, parts, path)
        return parts

    def read_list(self, name):
        """A list of videos "ApplyEyeMakeup/v_x.avi [label]"; the frame is "Apply_Eye_Makeup/v_x.jpg"."""
        path = os.path.join(self.folder, "ucfTrainTestlist", name)
        items = []
        for number, line in read_lines(path, self.hint):
            action, _, video = line.split()[0].partition("/")
            if action not in self.labels:
                raise InputError(f"{path}, line {number}: '{action}' is no class of classInd.txt")
            if line.split()[1:] not in ([], [str(self.labels[action] + 1)]):
                raise InputError(f"{path}, line {number}: '{action}' is class {self.labels[action] + 1} of "
                                 f"classInd.txt, not {' '.join(line.split()[1:])}")
            classname = "_".join(re.findall("[A-Z][^A-Z]*", action))
            frame = os.path.splitext(video)[0] + ".jpg"
            items.append(Datum(os.path.join(self.images, classname, frame), self.labels[action], 0, classname))
        return items
