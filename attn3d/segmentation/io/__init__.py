"""Reads and writes files: scans, labels, DICOM, tables and JSON."""
