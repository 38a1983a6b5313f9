"""The report of ``methods``: descriptions of merge methods."""

from __future__ import annotations

from collections.abc import Sequence

from mergeloom.methods.declare import REQUIRED, Method, Parameter
from mergeloom.report import records


def methods_report(methods: Sequence[Method]) -> records.MethodsReport:
    """The report of some merge methods."""
    return records.MethodsReport(methods=tuple(map(method_record, methods)))


def method_record(method: Method) -> records.MethodReport:
    """The record of one merge method."""
    return records.MethodReport(
        name=method.name,
        summary=method.summary,
        formula=method.formula,
        reference=method.reference,
        works=method.works,
        draws=method.draws,
        base_model=method.base.value,
        models=(method.minimum, method.maximum),
        model_parameters=tuple(map(_parameter_report, method.model_parameters)),
        parameters=tuple(map(_parameter_report, method.settings)),
    )


def _parameter_report(parameter: Parameter) -> records.ParameterReport:
    required = parameter.default is REQUIRED
    return records.ParameterReport(
        name=parameter.name,
        kind=parameter.kind.__name__,
        help=parameter.help,
        required=required,
        default=None if required else parameter.default,
        minimum=parameter.minimum,
        maximum=parameter.maximum,
        range=parameter.range_text(),
    )
