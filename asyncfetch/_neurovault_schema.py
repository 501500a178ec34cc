"""What NeuroVault's records hold: keys with their kinds, and codes of enumerations.

Facts of the server as of 2025, which the client and the embedded archive both go by:
the client when it types columns, the archive when it makes records.
"""

from __future__ import annotations

from collections.abc import Mapping

PAGE = 1000
"""The largest page (neurovault/api/pagination.py): more is cut without a word."""

DEFAULT_PAGE = 100


def _kinds(**names: str) -> dict[str, str]:
    """Names to the letter of their kind."""
    return {name: kind[0] for kind, row in names.items() for name in row.split()}


COLLECTION: Mapping[str, str] = {
    "id": "i",
    "name": "s",
    "DOI": "s",
    "preprint_DOI": "s",
    "publication_status": "s",
    "authors": "s",
    "journal_name": "s",
    "paper_url": "s",
    "description": "s",
    "owner": "i",
    "owner_name": "s",
    "contributors": "s",
    "number_of_images": "i",
    "private": "b",
    "communities": "j",
    "url": "s",
    "download_url": "s",
    "full_dataset_url": "s",
    "add_date": "t",
    "modify_date": "t",
    "doi_add_date": "t",
    **_kinds(
        ints="number_of_imaging_runs number_of_experimental_units "
        "number_of_rejected_subjects matrix_size",
        floats="length_of_runs length_of_blocks subject_age_mean subject_age_min "
        "subject_age_max proportion_male_subjects field_strength field_of_view "
        "slice_thickness skip_distance repetition_time echo_time flip_angle "
        "target_resolution smoothing_fwhm resampled_voxel_size",
        # "susceptibiity" is how the server spells it.
        bools="optimization group_comparison used_b0_unwarping "
        "used_slice_timing_correction used_motion_correction "
        "used_motion_susceptibiity_correction used_intersubject_registration "
        "functional_coregistered_to_structural used_smoothing "
        "used_temporal_derivatives used_dispersion_derivatives used_motion_regressors "
        "used_reaction_time_regressor used_orthogonalization used_high_pass_filter "
        "group_repeated_measures",
        strs="type_of_design handedness order_of_acquisition "
        "intersubject_transformation_type coordinate_space group_inference_type "
        "nutbrain_hunger_state length_of_trials optimization_method "
        "inclusion_exclusion_criteria group_description scanner_make scanner_model "
        "pulse_sequence parallel_imaging acquisition_orientation software_package "
        "software_version order_of_preprocessing_operations quality_control "
        "b0_unwarping_software slice_timing_correction_software "
        "motion_correction_software motion_correction_reference "
        "motion_correction_metric motion_correction_interpolation "
        "intersubject_registration_software nonlinear_transform_type "
        "transform_similarity_metric interpolation_method object_image_type "
        "functional_coregistration_method target_template_image smoothing_type "
        "intrasubject_model_type intrasubject_estimation_type "
        "intrasubject_modeling_software hemodynamic_response_function "
        "orthogonalization_description high_pass_filter_method autocorrelation_model "
        "group_model_type group_estimation_type group_modeling_software "
        "group_model_multilevel group_repeated_measures_method "
        "nutbrain_food_viewing_conditions nutbrain_food_choice_type "
        "nutbrain_taste_conditions nutbrain_odor_conditions",
    ),
}
"""Keys of a collection, each with its kind: i(nt), f(loat), b(ool), s(tr), t(imestamp),
j(son)."""

_COMMON: Mapping[str, str] = {
    "id": "i",
    "collection_id": "i",
    "name": "s",
    "description": "s",
    "image_type": "s",
    "file": "s",
    "file_size": "i",
    "url": "s",
    "collection": "s",
    "add_date": "t",
    "modify_date": "t",
    "is_valid": "b",
    **_kinds(
        strs="target_template_image surface_left_file surface_right_file thumbnail "
        "reduced_representation data_origin subject_species figure handedness sex "
        "race ethnicity tanner_stage",
        floats="age BMI fat_percentage waist_hip_ratio mean_PDS_score "
        "days_since_menstruation hours_since_last_meal bis_bas_score spsrq_score "
        "bis11_score",
    ),
}
_STATISTICS = _kinds(
    strs="map_type analysis_level",
    bools="is_thresholded not_mni",
    floats="perc_bad_voxels brain_coverage perc_voxels_outside",
    ints="number_of_subjects",
)
STATISTIC_MAP: Mapping[str, str] = {
    **_COMMON,
    **_STATISTICS,
    **_kinds(
        strs="modality contrast_definition contrast_definition_cogatlas "
        "cognitive_paradigm_cogatlas cognitive_paradigm_cogatlas_id "
        "cognitive_contrast_cogatlas cognitive_contrast_cogatlas_id "
        "cognitive_paradigm_description_url cognitive_paradigm_short_description "
        "cognitive_paradigm_name",
        floats="statistic_parameters smoothness_fwhm",
    ),
}
NIDM_MAP: Mapping[str, str] = {
    **_COMMON,
    **_STATISTICS,
    "nidm_results": "s",
    "nidm_results_ttl": "s",
    "data": "j",
}
ATLAS: Mapping[str, str] = {**_COMMON, "label_description_file": "s", "data": "j"}
IMAGE: Mapping[str, str] = {**STATISTIC_MAP, **NIDM_MAP, **ATLAS}
"""Keys of an image of whatever kind."""

NIDM_RESULTS: Mapping[str, str] = {
    "id": "i",
    "collection": "i",
    "name": "s",
    "description": "s",
    "url": "s",
    "zip_file": "s",
    "ttl_file": "s",
    "statmaps": "j",
    "add_date": "t",
    "modify_date": "t",
    "polymorphic_ctype": "i",
}

UNITS = {"file_size": "bytes", "smoothing_fwhm": "mm", "field_strength": "T"}

CODES: Mapping[str, Mapping[str, str]] = {
    "map_type": {
        "T": "T map",
        "Z": "Z map",
        "F": "F map",
        "X2": "Chi squared map",
        "P": "P map (given null hypothesis)",
        "IP": '1-P map ("inverted" probability)',
        "M": "multivariate-beta map",
        "U": "univariate-beta map",
        "R": "ROI/mask",
        "Pa": "parcellation",
        "A": "anatomical",
        "V": "variance",
        "Other": "other",
    },
    "analysis_level": {
        "S": "single-subject",
        "G": "group",
        "M": "meta-analysis",
        "Other": "other",
    },
    "modality": {
        one: one
        for one in (
            "fMRI-BOLD",
            "fMRI-CBF",
            "fMRI-CBV",
            "Diffusion MRI",
            "Structural MRI",
            "PET FDG",
            "PET [15O]-water",
            "PET other",
            "MEG",
            "EEG",
            "Other",
        )
    },
    "target_template_image": {
        one: one for one in ("GenericMNI", "Dorr2008", "NMT", "MNI152NLin2009cAsym")
    },
    "data_origin": {"volume": "volume", "surface": "surface"},
    "handedness": {"L": "L", "R": "R"},
    "sex": {"M": "M", "F": "F", "O": "O"},
}
"""Enumerations of an image: what is written, and what it is read back as."""

NULLS = frozenset({"", "n/a", "none", "none / other", "null"})
"""Texts that stand for nothing, in lower case; whole ones only."""
