// A dashboard with the kinds of panels that we use, for a JSON schema of Grafana's own types.
// In a folder with this file and a package.json (npm init -y):
//   npm install @grafana/schema@13.2.3 typescript@5.9 ts-json-schema-generator@2.4.0
//   npx ts-json-schema-generator --path board.ts --type Board --no-type-check --expose none --no-top-ref -o full.json
//   python -m tests.support.grafana.schema full.json   (in the project)
import {Dashboard, FieldConfig, FieldConfigSource, Panel, RowPanel} from './node_modules/@grafana/schema/dist/types/raw/dashboard/x/types.gen';
import * as bargauge from './node_modules/@grafana/schema/dist/types/raw/composable/bargauge/panelcfg/x/types.gen';
import * as stat from './node_modules/@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen';
import * as timeline from './node_modules/@grafana/schema/dist/types/raw/composable/statetimeline/panelcfg/x/types.gen';
import * as timeseries from './node_modules/@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen';

type Of<Type extends string, Options, Custom> = Omit<Panel, 'type' | 'options' | 'fieldConfig'> & {
  type: Type;
  options: Options;
  fieldConfig: {
    defaults: Omit<FieldConfig, 'custom'> & {custom?: Custom};
    overrides: FieldConfigSource['overrides'];
  };
};

type Shown =
  | RowPanel
  | Of<'timeseries', timeseries.Options, timeseries.FieldConfig>
  | Of<'stat', stat.Options, {}>
  | Of<'state-timeline', timeline.Options, timeline.FieldConfig>
  | Of<'bargauge', bargauge.Options, {}>;

export type Board = Omit<Dashboard, 'panels'> & {panels: Shown[]};
