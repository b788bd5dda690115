"""Tests of the contract of attention mechanisms, for any module (B, C, *S) -> (B, C, *S)."""

from attn3d.testing.contract import CONDITIONS, ContractError, Report, check_attention

__all__ = ["CONDITIONS", "ContractError", "Report", "check_attention"]
