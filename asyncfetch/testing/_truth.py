"""What the archive holds, read without HTTP: what a client's rows are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from asyncfetch.testing._alyx import AlyxService
from asyncfetch.testing._neuromorpho import NeuroMorphoService
from asyncfetch.testing._neuroscout import NeuroscoutService
from asyncfetch.testing._neurovault import NeuroVaultService

Record = dict[str, Any]


class Truth:
    """What the archive serves, as Python values."""

    def __init__(
        self,
        neuroscout: NeuroscoutService,
        neuromorpho: NeuroMorphoService,
        alyx: AlyxService,
        neurovault: NeuroVaultService,
    ) -> None:
        self._neuroscout = neuroscout
        self._neuromorpho = neuromorpho
        self._alyx = alyx
        self._neurovault = neurovault

    def datasets(self) -> list[Record]:
        """Neuroscout's datasets by id, inactive ones too, each with its ``runs``."""
        return self._neuroscout.datasets()

    def runs(self, **equal: Any) -> list[Record]:
        """Neuroscout's runs by id, those whose fields equal the arguments."""
        return _select(self._neuroscout.runs(), equal)

    def predictors(self, **equal: Any) -> list[Record]:
        """Neuroscout's predictors by id, private and inactive ones too."""
        return _select(self._neuroscout.predictors(), equal)

    def events(
        self,
        predictor_ids: int | Iterable[int],
        run_ids: int | Iterable[int] | None = None,
        *,
        stimulus_timing: bool = False,
    ) -> list[Record]:
        """The events' records as sent, by predictor, run and onset.

        Events of one onset come in the order of the archive's own.
        """
        return self._neuroscout.events(
            _ids(predictor_ids),
            None if run_ids is None else _ids(run_ids),
            stimulus_timing=stimulus_timing,
        )

    def count_events(
        self,
        predictor_ids: int | Iterable[int],
        run_ids: int | Iterable[int] | None = None,
    ) -> int:
        """The number of records that `events` would give, without making them."""
        return self._neuroscout.count_events(
            _ids(predictor_ids), None if run_ids is None else _ids(run_ids)
        )

    def neurons(self, **equal: Any) -> list[Record]:
        """NeuroMorpho's records by id, those whose fields equal the arguments."""
        return _select(self._neuromorpho.neurons(), equal)

    def publications(self) -> list[Record]:
        """NeuroMorpho's publications by id."""
        return list(self._neuromorpho.publications())

    def morphometry(self, neuron_id: int) -> Record | None:
        """The neuron's measurements as sent, or None where there are none."""
        return self._neuromorpho.morphometry(neuron_id)

    def swc(self, neuron_id: int) -> bytes | None:
        """The bytes of the neuron's CNG file, or None where there is no such file."""
        return self._neuromorpho.swc(neuron_id)

    def source(self, neuron_id: int) -> bytes | None:
        """The bytes of the neuron's source file, or None where there is none."""
        return self._neuromorpho.source(neuron_id)

    def alyx(self, endpoint: str, **filters: str) -> list[Record]:
        """Alyx's distinct rows of an endpoint, with relations in them.

        *filters* are parameters as they are sent.
        """
        return list(dict.fromkeys(self._alyx.rows(endpoint, filters)))

    def collections(self, **equal: Any) -> list[Record]:
        """NeuroVault's collections, private and poisoned ones too."""
        return _select(self._neurovault.data.collections.values(), equal)

    def images(self, **equal: Any) -> list[Record]:
        """NeuroVault's images by id, whoever may see them, each with its ``bytes``.

        ``bytes`` is None for a file that is not on the service's disk.
        """
        images = self._neurovault.data.images
        return _select((images[key] for key in sorted(images)), equal)


def _ids(value: int | Iterable[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def _select(records: Iterable[Record], equal: Record) -> list[Record]:
    return [
        record
        for record in records
        if all(record.get(name) == value for name, value in equal.items())
    ]
