-- Sends each stable study with MR images to flairnode. In orthanc.json:
--   "LuaScripts": ["/etc/orthanc/flairnode.lua"],
--   "DicomModalities": {"flairnode": ["FLAIRNODE", "192.0.2.10", 11112]}
--
-- Orthanc forgets which studies were about to become stable when it stops, and does not repeat a job
-- that failed. So let the node compare what is here with what it has, as well:
--   [[sources]]                      in flairnode's site.toml; its peer needs orthanc_url
--   peer = "archive"
--   follow = false
--   reconcile_every_s = 900
-- A study that comes both ways is analysed once. (A node that follows this Orthanc, follow = true,
-- needs no script at all.)

local NODE = 'flairnode'

function OnStableStudy(studyId, tags, metadata)
  local study = ParseJson(RestApiGet('/studies/' .. studyId .. '/series', false))
  local mr = {}
  for _, series in pairs(study) do
    if series['MainDicomTags']['Modality'] == 'MR' then
      table.insert(mr, series['ID'])
    end
  end
  if #mr == 0 then
    return
  end
  -- Only the MR series: our own results are in the study too once they are stored here.
  RestApiPost('/modalities/' .. NODE .. '/store',
              DumpJson({Resources = mr, Synchronous = false}, true), false)
  print('flairnode: ' .. #mr .. ' MR series queued')
end
