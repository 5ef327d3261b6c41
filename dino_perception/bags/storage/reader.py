"""Any bag as one ordered stream of CDR messages: rosbag2 folders and files (mcap, sqlite3, split, compressed) and ROS
1."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from rosbags.rosbag1 import ReaderError
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.base import TypesysError

from dino_perception.bags.storage.definitions import DefinitionError, definition_types, is_type_name
from dino_perception.bags.storage.mcap_format import LARGEST, McapError, unpacked, zstd
from dino_perception.bags.storage.mcap_read import McapSource
from dino_perception.bags.storage.merge import merged
from dino_perception.bags.storage.packed import PackedSource
from dino_perception.bags.storage.problems import EMPTY, UNREADABLE, BagError, Problem
from dino_perception.bags.storage.ros1_read import Ros1Error, Ros1Source
from dino_perception.bags.storage.sqlite_read import SqliteError, SqliteSource
from dino_perception.bags.storage.topic import Record, Topic
from dino_perception.messages import foxglove
from dino_perception.messages.types import RosbagsTypes
from dino_perception.models.yaml_text import YamlError, load_file

SUFFIXES = (".mcap", ".db3", ".bag")
_ZSTD = b"\x28\xb5\x2f\xfd"
_NO_BAG = "it is neither a rosbag2 folder nor a .mcap, .db3 or .bag file"


def is_bag(path: Path) -> bool:
    """Whether a path looks like one bag: a rosbag2 folder, or a file of a known kind."""
    if path.is_dir():
        return (path / "metadata.yaml").is_file()
    return path.is_file() and _kind(path) in SUFFIXES


class BagReader:
    """One bag. Use it as a context manager.

    `files` hold its messages, `topics` are its topics by name, `start_ns` and `end_ns` its first and last record time, `problems` what was found
    to be wrong with it so far. `types` builds and reads its messages. Raises BagError when nothing can be read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.problems: list[Problem] = []
        self._sources: list[_Source] = []
        try:
            self.files = self._files()
            for file in self.files:
                self._open(file)
            if not self._sources:
                raise BagError(
                    self.problems[0].sentence if self.problems else f"{path} is no bag: {_NO_BAG}", UNREADABLE
                )
        except BaseException:
            self.close()
            raise
        self._collect_topics()
        times = [source for source in self._sources if any(topic.count for topic in source.topics)]
        if not times:
            self.close()
            found = "".join(f"; {problem.sentence}" for problem in self.problems)
            raise BagError(f"{path} holds no message{found}", EMPTY)
        self.start_ns = min(source.start_ns for source in times)
        self.end_ns = max(source.end_ns for source in times)
        self.types = RosbagsTypes(self._typestore())
        self._complete_topics()

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        for source in self._sources:
            source.close()

    @property
    def recorded_order(self) -> bool:
        """Whether messages come in the order of recording instead of by time, because the clock jumped back."""
        return any(source.recorded_order for source in self._sources)

    @property
    def message_count(self) -> int:
        return sum(topic.count for topic in self.topics.values())

    def messages(
        self, names: Collection[str] | None = None, start: int | None = None, stop: int | None = None
    ) -> Iterator[Record]:
        """The messages of the topics `names` (default: all) with start <= record time < stop, by record time; at one
        time in the order of the files and within them. Bags whose clock jumped back come in the order of recording."""

        def part(source: _Source):
            return lambda: (
                (time, Record(self.topics[topic.name], time, data))
                for time, topic, data in source.messages(names, start, stop)
                if _same(topic, self.topics[topic.name])
            )

        if self.recorded_order:
            stream = (entry for source in self._sources for entry in part(source)())
        else:
            stream = merged([(source.start_ns, part(source)) for source in self._sources])
        for _, record in stream:
            if record.data[:4] == _ZSTD and record.topic.coding == "cdr":  # message compression; CDR starts with a zero
                try:
                    record = record._replace(data=unpacked(record.data, LARGEST))
                except (zstd.ZstdError, McapError) as error:
                    self.note(
                        Problem(
                            "damaged",
                            f"messages of {record.topic.name} cannot be decompressed ({error})",
                            record.topic.name,
                        )
                    )
                    continue
            yield record

    def decode(self, record: Record) -> Any:
        """The message of a record; Foxglove's with the field names of ROS. Raises rosbags' SerdeError for bytes that are
        not the message, or KeyError when the type is unknown."""
        topic = record.topic
        if topic.coding == "cdr" and topic.type not in self.types.typestore.fielddefs:
            raise KeyError(topic.type)
        try:
            if foxglove.known(topic.type, topic.coding):
                return foxglove.decode(topic.type, topic.coding, topic.definition_bytes, record.data)
            if topic.coding != "cdr":
                raise SerdeError(f"the message is encoded as '{topic.coding}', not as cdr")
            message = self.types.deserialize(record.data, topic.type)
            plain = topic.type.startswith("foxglove_msgs/msg/") and hasattr(message, "timestamp")
            return foxglove.with_ros_names(message) if plain else message
        except SerdeError:
            raise
        except Exception as error:  # rosbags meets damaged bytes and definitions in more ways than its own
            raise SerdeError(f"{type(error).__name__}: {error}") from None

    def note(self, problem: Problem) -> None:
        """Remember a problem, once."""
        problem = problem._replace(sentence=" ".join(problem.sentence.split()))
        if problem not in self.problems:
            self.problems.append(problem)

    def _files(self) -> list[Path]:
        path = self.path
        if not path.exists():
            raise BagError(f"{path} does not exist", UNREADABLE)
        if path.is_file():
            if _kind(path) not in SUFFIXES:
                raise BagError(f"{path} is no bag: {_NO_BAG}", UNREADABLE)
            return [path]
        if not path.is_dir():
            raise BagError(f"{path} is no bag: it is neither a file nor a folder", UNREADABLE)
        try:
            found = sorted(file for file in path.iterdir() if file.is_file() and _kind(file) in SUFFIXES[:2])
        except OSError as error:
            raise BagError(f"{path} cannot be read: {error.strerror}", UNREADABLE) from None
        try:
            about = load_file(path / "metadata.yaml")["rosbag2_bagfile_information"]
            names = [Path(name).name for name in about["relative_file_paths"]]
            listed = [path / name for name in dict.fromkeys(names) if _kind(Path(name)) in SUFFIXES]
        except FileNotFoundError:
            if not found:
                raise BagError(f"{path} is no bag: {_NO_BAG}", UNREADABLE) from None
            self.note(Problem("unindexed", f"{path} has no metadata.yaml; its files are taken by name"))
            return found
        except (OSError, YamlError, LookupError, TypeError, ValueError) as error:
            self.note(
                Problem("damaged", f"{path / 'metadata.yaml'} cannot be read ({error}); the files are taken by name")
            )
            return found
        for missing in [file for file in listed if not file.is_file()]:
            self.note(Problem("truncated", f"{missing.name} is missing from {path}"))
        return [file for file in listed if file.is_file()]

    def _open(self, file: Path) -> None:
        try:
            kind = {".mcap": McapSource, ".db3": SqliteSource, ".bag": Ros1Source}[_kind(file)]
            self._sources.append(
                PackedSource(file, self.note, kind) if file.suffix == ".zstd" else kind(file, self.note)
            )
        except (McapError, SqliteError, Ros1Error, ReaderError, OSError) as error:
            if self.path.is_file():
                raise BagError(str(error), EMPTY if "is empty" in str(error) else UNREADABLE) from None
            self.note(Problem("damaged", f"a file of the bag is left out: {error}"))

    def _collect_topics(self) -> None:
        self.topics: dict[str, Topic] = {}
        for source in self._sources:
            for topic in source.topics:
                known = self.topics.get(topic.name)
                if known is None:
                    self.topics[topic.name] = topic
                elif _same(known, topic):
                    best = known if known.definition else topic
                    self.topics[topic.name] = Topic(**{**vars(best), "count": known.count + topic.count})
                else:
                    self.note(
                        Problem(
                            "unknown",
                            f"topic {topic.name} has two types, {known.type} ({known.coding}) and {topic.type} "
                            f"({topic.coding}); the second is left out",
                            topic.name,
                        )
                    )

    def _complete_topics(self) -> None:
        """Give topics of known types the definition that the bag left out, so that a copy has it."""
        store = self.types.typestore
        for name, topic in self.topics.items():
            if topic.coding == "cdr" and not topic.definition and topic.type in store.fielddefs:
                text, _ = store.generate_msgdef(topic.type, ros_version=2)
                self.topics[name] = Topic(
                    **{**vars(topic), "definition": text, "encoding": "ros2msg", "hash": store.hash_rihs01(topic.type)}
                )

    def _typestore(self) -> Any:
        """The bag's own definitions, and Jazzy's for what it does not define."""
        jazzy = get_typestore(Stores.ROS2_JAZZY)
        own: dict[str, Any] = {}
        for topic in list(self.topics.values()):
            if topic.coding != "cdr":
                sentence = f"topic {topic.name} is encoded as '{topic.coding}'; its messages are copied as they are"
                self.note(Problem("", sentence, topic.name))
                continue
            if not topic.definition:
                self.topics[topic.name] = _undefined(topic)
                if topic.type not in jazzy.fielddefs and topic.type not in RosbagsTypes().typestore.fielddefs:
                    self.note(
                        Problem(
                            "unknown",
                            f"topic {topic.name} is of type {topic.type or '(none)'}, which the bag does not "
                            "define; its messages are copied as they are",
                            topic.name,
                        )
                    )
                continue
            try:
                own.update(definition_types(topic.definition, topic.type, topic.encoding, jazzy.fielddefs))
            except DefinitionError as error:
                known = topic.type in jazzy.fielddefs
                if known or not is_type_name(
                    topic.type
                ):  # a copy of the text would have others refuse the whole output
                    self.topics[topic.name] = _undefined(topic)
                self.note(
                    Problem(
                        "unknown",
                        f"topic {topic.name} has a definition that cannot be read; its messages are copied "
                        f"as they are{', with the one that ROS 2 Jazzy has' if known else ''} ({error})",
                        topic.name,
                    )
                )
        new = {name: fields for name, fields in own.items() if jazzy.fielddefs.get(name) != fields}
        if new.keys() & jazzy.fielddefs.keys():  # an older or newer definition of a standard type
            store = get_typestore(Stores.EMPTY)
            try:
                store.register({**jazzy.fielddefs, **own})
                return store
            except TypesysError as error:  # the bag says that a time is no time
                self.note(
                    Problem("damaged", f"a definition of the bag contradicts ROS's own and is left out ({error})")
                )
                own = {name: fields for name, fields in own.items() if name not in jazzy.fielddefs}
                new = own
        jazzy.register(new)
        return jazzy


_Source = McapSource | SqliteSource | Ros1Source | PackedSource


def _undefined(topic: Topic) -> Topic:
    """The topic without a definition, nor the language of one: others read an empty text in the language that is named,
    and refuse the whole recording over the type's name."""
    return Topic(**{**vars(topic), "definition": "", "encoding": ""})


def _same(one: Topic, other: Topic) -> bool:
    return (one.type, one.coding) == (other.type, other.coding)


def _kind(file: Path) -> str:
    return Path(file.stem).suffix if file.suffix == ".zstd" else file.suffix
