"""The network edge: storage SCP and SCU, queries, an Orthanc adapter. All sockets of `dicom`."""
