"""What an Alyx server offers: endpoints, actions, filters and the keys of records.

Facts of server 3.6.1, which the client and the embedded archive both go by: the client
when it is asked without a server, the archive when it writes its schema documents. The
types in the server's own document are unreliable for answers (ages and counts are
called texts there), so that the kinds of columns are kept here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

KINDS = {
    "s": "string",
    "i": "integer",
    "f": "number",
    "b": "boolean",
    "t": "string",
    "l": "array",
    "j": "object",
}
"""Letters behind names, and what schema documents call them."""

ACTIONS = {
    "L": ("list", "GET"),
    "C": ("create", "POST"),
    "R": ("read", "GET"),
    "U": ("update", "PUT"),
    "P": ("partial_update", "PATCH"),
    "D": ("delete", "DELETE"),
}
"""Letters of actions, with their names and methods."""

PAGE = 1000
"""The largest page: a server cuts what is above it, and says nothing."""

Keys = Literal["uuid", "int"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An endpoint of the REST API."""

    name: str
    actions: str
    """Letters of :data:`ACTIONS`."""
    lookup: str = "id"
    """What one record is named by."""
    has_django: bool = False
    """Whether it takes the filter ``django``."""
    is_large: bool = False
    """Whether it has thousands of records as a rule."""
    keys: Keys = "uuid"
    """What its primary keys are."""
    identity: str | None = "id"
    """The key of a record that tells it from all others."""
    filters: Mapping[str, str] = field(default_factory=dict)
    """Letters of :data:`KINDS` by name, without paging."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Letters of :data:`KINDS` by name, in the order of the records."""

    @property
    def is_listed(self) -> bool:
        """Whether it has a list, in pages."""
        return "L" in self.actions and self.name not in _BARE


def _kinds(text: str) -> dict[str, str]:
    """Names with a letter each: ``number:i`` is an integer, no letter a text."""
    pairs = (word.partition(":") for word in text.split())
    return {name: kind or "s" for name, _, kind in pairs}


# Lists that are no pages: a bare array, or an object of another kind.
_BARE = frozenset({"check-protected", "sync-file-status"})
_ATLAS = "atlas_acronym atlas_id:i atlas_name"
_WATER = "date_range lab location subject nickname users"
# Name: actions, marks (d: takes django, L: large, i: integer keys), what a record is
# looked up by, and what tells it from others.
_ENDPOINTS = """
sessions LCRUPD dL id id
datasets LCRUPD dL id url
files LCRUPD dL id url
insertions LCRUPD dL id id
trajectories LCRUPD dL id id
channels LCRUPD dL id id
tasks LCRUPD dL id id
notes LCRUPD dL id id
chronic-insertions LCRUPD d id id
fields-of-view LCRUPD d id id
fov-location LCRUPD d id id
water-administrations LCRUPD dL id url
data-notices LCRUPD d id id
subjects LCRUPD dL nickname nickname
labs LCRUPD d name name
projects LCRUPD - name name
tags LCRUPD - name id
revisions LCRUPD - name id
dataset-types LCRUPD - name id
data-formats LCRUPD - name id
data-repository LCRUPD - name name
data-repository-type LCRUPD - name name
users LCRUPD di username id
weighings LCRD dL id url
surgeries LRUP d id id
downloads LRUP dL id id
locations LRUP - name name
brain-regions LRUP di id id
imaging-stack LCR d id id
procedures LC - name id
water-type LCR - name name
water-restriction L d - -
water-restricted-subjects L - - nickname
water-requirement R - nickname -
register-file C - - -
new-download C - - -
check-protected L - - -
sync-file-status LC - - -
cache - - - -
cache.zip - - - -
uploaded - - - -
"""
_FILTERS = {
    "sessions": f"{_ATLAS} auto_datetime dataset_qc_lte dataset_types datasets "
    "date_range end_time extended_qc histology:b id json lab location "
    "n_correct_trials:f n_trials:f name narrative nickname number:f parent_session "
    "performance_gte:f performance_lte:f procedures project projects qc start_time "
    "subject tag task_protocol type users",
    "datasets": "auto_datetime collection content_type created_by created_date "
    "created_date_gte created_date_lte created_datetime data_format dataset_type date "
    "default_dataset:b exists:b experiment_number:i file_size:f hash id json lab name "
    "object_id probe_insertion protected:b public:b qc revision session subject tag "
    "version",
    "files": "data_repository dataset exists:b globus_is_personal:b id lab "
    "relative_path",
    "insertions": f"{_ATLAS} auto_datetime chronic_insertion dataset_qc_lte "
    "dataset_types datasets date experiment_number:i id json lab model name project "
    "serial session subject tag task_protocol",
    "trajectories": "chronic_insertion coordinate_system datetime date depth:f "
    "experiment_number:i id json phi:f probe probe_insertion project provenance roll:f "
    "session subject theta:f x:f y:f z:f",
    "channels": "axial:f brain_region:i id json lab lateral:f name probe_insertion "
    "session subject trajectory_estimate x:f y:f z:f",
    "tasks": "arguments cpu:i data_repository datetime executable gpu:i graph id "
    "io_charge:i lab level:i log name priority:i ram:i session status "
    "time_elapsed_secs:f time_out_secs:i version",
    "notes": "",
    "chronic-insertions": "id lab model name project serial session subject",
    "fields-of-view": f"{_ATLAS} id imaging_type name provenance session subject",
    "fov-location": "auto_datetime field_of_view id provenance",
    "data-notices": "id name",
    "subjects": "alive:b birth_date death_date description id lab line nickname "
    "project responsible_user sex source species stock:b strain water_restricted:b",
    "labs": "address id institution name timezone",
    "tags": "name",
    "revisions": "name",
    "data-repository": "globus_endpoint_id globus_is_personal:b name",
    "users": "email id:i is_stock_manager:b username",
    "weighings": f"{_WATER} date_time user weight:f",
    "water-administrations": f"{_WATER} adlib:b date_time session user "
    "water_administered:f water_type",
    "surgeries": f"{_WATER} id name narrative start_time",
    "downloads": "count:i dataset dataset_type id json user",
    "brain-regions": "acronym ancestors description descendants id:i name parent:i",
    "imaging-stack": "id name",
    "water-restriction": "lab reference_weight:f start_time end_time subject nickname",
}
_COLUMNS = {
    "sessions": "id subject start_time:t number:i lab projects:l url task_protocol",
    "datasets": "id url name created_by created_datetime:t dataset_type data_format "
    "collection session file_size:i hash version experiment_number:i file_records:j "
    "auto_datetime:t revision default_dataset:b protected:b public:b tags:l qc json:j",
    "files": "id url dataset data_repository name json:j relative_path exists:b",
    "insertions": "id session model session_info:j name json:j serial auto_datetime:t "
    "chronic_insertion datasets:l",
    "trajectories": "id probe_insertion x:f y:f z:f depth:f theta:f phi:f roll:f "
    "provenance session:j probe_name coordinate_system datetime:t json:j "
    "chronic_insertion",
    "channels": "id trajectory_estimate brain_region:i name json:j axial:f lateral:f "
    "x:f y:f z:f",
    "tasks": "id parents:l session data_repository status name priority:i io_charge:i "
    "level:i gpu:i cpu:i ram:i time_out_secs:i time_elapsed_secs:f executable graph "
    "log version datetime:t arguments:j",
    "notes": "id user date_time:t content_type object_id text image json:j",
    "subjects": "nickname url id responsible_user birth_date age_weeks:i death_date "
    "species sex litter strain source line projects:l session_projects:l lab "
    "genotype:j description alive:b reference_weight:f last_water_restriction:t "
    "expected_water:f remaining_water:f json:j",
    "labs": "name institution address timezone repositories:l reference_weight_pct:f "
    "zscore_weight_pct:f json:j",
    "projects": "name description users:l",
    "tags": "id json:j name description protected:b public:b hash",
    "revisions": "id json:j name description created_datetime:t",
    "dataset-types": "id name created_by description filename_pattern",
    "data-formats": "id json:j name description file_extension matlab_loader_function "
    "python_loader_function",
    "data-repository": "name timezone globus_path hostname data_url repository_type "
    "globus_endpoint_id globus_is_personal:b json:j",
    "data-repository-type": "name id json:j",
    "users": "id:i username email subjects_responsible:l lab:l allowed_users:l "
    "is_stock_manager:b",
    "weighings": "id subject date_time:t weight:f user url",
    "water-administrations": "id subject date_time:t water_administered:f water_type "
    "user url session adlib:b",
    "water-restriction": "subject start_time:t end_time:t water_type "
    "reference_weight:f",
    "downloads": "id user dataset count:i json:j",
    "locations": "name lab json:j",
    "brain-regions": "id:i acronym name description parent:i related_descriptions:j",
    "procedures": "id name json:j description",
    "water-type": "name id json:j",
    "water-restricted-subjects": "nickname",
}
_UNITS = {
    "file_size": "bytes",
    "weight": "g",
    "reference_weight": "g",
    "water_administered": "mL",
    "expected_water": "mL",
    "remaining_water": "mL",
    "x": "µm",
    "y": "µm",
    "z": "µm",
    "depth": "µm",
    "axial": "µm",
    "lateral": "µm",
    "theta": "°",
    "phi": "°",
    "roll": "°",
}
UNITS: Mapping[str, str] = _UNITS
"""Of columns, by name."""


def _endpoint(line: str) -> Endpoint:
    name, actions, marks, lookup, identity = line.split()
    return Endpoint(
        name=name,
        actions=actions.replace("-", ""),
        lookup=lookup,
        has_django="d" in marks,
        is_large="L" in marks,
        keys="int" if "i" in marks else "uuid",
        identity=None if identity == "-" else identity,
        filters=dict(
            sorted(
                (
                    _kinds(_FILTERS.get(name, ""))
                    | ({"django": "s"} if "d" in marks else {})
                ).items()
            )
        ),
        columns=_kinds(_COLUMNS.get(name, "id name json:j url")),
    )


ENDPOINTS: Mapping[str, Endpoint] = {
    one.name: one
    for one in sorted(
        map(_endpoint, _ENDPOINTS.strip().splitlines()), key=lambda one: one.name
    )
}
"""By name, in the order in which a server lists them."""

DESCRIPTIONS: Mapping[str, str] = {
    "sessions": """    get: **FILTERS**

-   **subject**: subject nickname `/sessions?subject=Algernon`
-   **dataset_types**: dataset type(s) `/sessions?dataset_types=trials.table`
-   **datasets**: dataset name(s) `/sessions?datasets=_ibl_leftCamera.times.npy`
-   **number**: session number
-   **users**: experimenters (exact)
-   **date_range**: date `/sessions?date_range=2020-01-12,2020-01-16`
-   **lab**: lab name (exact)
-   **task_protocol** (icontains)
-   **location**: location name (icontains)
-   **project**: project name (icontains)
-   **json**: queries on json fields: `/sessions?json=tutu__gte,0.5`
-   **extended_qc**: the same on its fields: `/sessions?extended_qc=qc_pct__gte,0.5`
-   **performance_gte**, **performance_lte**: percentage of successful trials
-   **atlas_acronym**, **atlas_id**, **atlas_name**: a region or one of its descendants
-   **qc**: one of CRITICAL, FAIL, WARNING, NOT_SET, PASS `/sessions?qc=CRITICAL`
-   **histology**: the subject has a histology session: `/sessions?histology=True`
-   **django**: generic filter: `/sessions?django=projects__name__icontains,matlab`
""",
}
"""What documents say of lists, where they say anything."""
