"""The contract that every mechanism keeps, to hold any module (B, C, *S) -> (B, C, *S) to."""

from attn3d.testing.contract import CONDITIONS, ContractError, Report, check_attention

__all__ = ["CONDITIONS", "ContractError", "Report", "check_attention"]
